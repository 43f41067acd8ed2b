use proptest::prelude::*;

use super::*;

/// A cache of `layers` tensors `[blocks, heads, states, content]`, elements of 2 bytes, with the physical order of
/// the axes given by name; `L` is the layer axis.
fn views(order: &str, layers: u64, shape: [u64; 4], base: u64) -> Vec<TensorView> {
    let length = |axis| match axis {
        'L' => layers,
        'B' => shape[0],
        'H' => shape[1],
        'N' => shape[2],
        _ => shape[3],
    };
    let mut stride = 2;
    let mut strides = std::collections::HashMap::new();
    for axis in order.chars().rev() {
        strides.insert(axis, stride);
        stride *= length(axis);
    }
    (0..layers)
        .map(|layer| TensorView {
            address: base + layer * strides[&'L'],
            shape: shape.to_vec(),
            strides: ['B', 'H', 'N', 'C'].iter().map(|axis| strides[axis]).collect(),
            item_bytes: 2,
        })
        .collect()
}

/// Every byte address of one block, by visiting each element the slow way, in the order the layout promises.
fn naive(tensors: &[TensorView], num_blocks: u64, block: u64) -> Vec<u64> {
    let mut bytes = Vec::new();
    for tensor in tensors {
        let split = tensor.shape[0] / num_blocks;
        let mut dims = vec![(tensor.strides[0], split)];
        dims.extend(tensor.strides[1..].iter().copied().zip(tensor.shape[1..].iter().copied()));
        dims.retain(|dim| dim.1 > 1);
        dims.sort_by_key(|dim| std::cmp::Reverse(dim.0));
        let mut offsets = vec![tensor.address + block * split * tensor.strides[0]];
        for (stride, length) in dims {
            offsets = offsets.iter().flat_map(|base| (0..length).map(move |i| base + i * stride)).collect();
        }
        bytes.extend(offsets.iter().flat_map(|base| (0..tensor.item_bytes).map(move |i| base + i)));
    }
    bytes
}

fn addresses(list: &ScatterList) -> Vec<u64> {
    list.pieces().iter().flat_map(|piece| piece.address..piece.address + piece.bytes).collect()
}

#[test]
fn the_six_engine_layouts_give_the_expected_number_of_pieces() {
    let shape = [8, 4, 16, 64];
    for (order, pieces, byte_order) in [
        ("LBHNC", 3, "1.2.3"),
        ("LBNHC", 3, "2.1.3"),
        ("LHBNC", 12, "1.2.3"),
        ("BLHNC", 1, "1.2.3"),
        ("BLNHC", 1, "2.1.3"),
        ("BHLNC", 12, "1.2.3"),
    ] {
        let layout = KvLayout::new(&views(order, 3, shape, 1 << 20), None).unwrap();
        assert_eq!(layout.pieces_per_block(), pieces, "{order}");
        assert_eq!(layout.byte_order(), byte_order, "{order}");
        assert_eq!(layout.block_bytes(), 3 * 4 * 16 * 64 * 2);
    }
}

#[test]
fn a_padded_page_leaves_its_padding_alone() {
    let tensor = TensorView { address: 0, shape: vec![4, 1, 1, 100], strides: vec![128, 100, 100, 1], item_bytes: 1 };
    let layout = KvLayout::new(&[tensor], None).unwrap();
    assert_eq!(layout.scatter(BlockId::new(3)).unwrap().pieces(), [Piece { address: 384, bytes: 100 }]);
}

#[test]
fn a_split_block_is_all_its_rows() {
    let tensor = TensorView { address: 0, shape: vec![8, 16], strides: vec![32, 2], item_bytes: 2 };
    let layout = KvLayout::new(std::slice::from_ref(&tensor), Some(4)).unwrap();
    assert_eq!(layout.scatter(BlockId::new(1)).unwrap().pieces(), [Piece { address: 64, bytes: 64 }]);
    assert_eq!(layout.byte_order(), "k2.1");
    assert!(matches!(KvLayout::new(&[tensor], Some(3)), Err(LayoutError::BlockCount { rows: 8, blocks: 3, .. })));
}

#[test]
fn bad_tensors_and_ids_are_named() {
    let good = TensorView { address: 0, shape: vec![4, 8], strides: vec![16, 2], item_bytes: 2 };
    assert_eq!(KvLayout::new(&[], None), Err(LayoutError::NoTensors));
    let overlapping = TensorView { strides: vec![8, 2], ..good.clone() };
    assert!(matches!(KvLayout::new(&[overlapping], None), Err(LayoutError::BadTensor { .. })));
    let expanded = TensorView { strides: vec![16, 0], ..good.clone() };
    assert!(matches!(KvLayout::new(&[expanded], None), Err(LayoutError::BadTensor { .. })));
    let ragged = TensorView { strides: vec![16], ..good.clone() };
    assert!(matches!(KvLayout::new(&[ragged], None), Err(LayoutError::BadTensor { .. })));
    let wrapping = TensorView { address: u64::MAX - 10, ..good.clone() };
    assert!(matches!(KvLayout::new(&[wrapping], None), Err(LayoutError::BadTensor { .. })));
    let layout = KvLayout::new(&[good], None).unwrap();
    assert_eq!(layout.check_ids([0, 3]).unwrap(), [BlockId::new(0), BlockId::new(3)]);
    assert_eq!(layout.check_ids([0, 4]), Err(LayoutError::OutOfRange { id: 4, position: 1, blocks: 4 }));
    assert_eq!(layout.check_ids([-1]), Err(LayoutError::OutOfRange { id: -1, position: 0, blocks: 4 }));
    assert!(layout.scatter(BlockId::new(4)).is_err());
}

proptest! {
    #[test]
    fn pieces_are_the_bytes_a_naive_walk_visits(
        order in prop::sample::select(vec!["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]),
        layers in 1u64..4,
        blocks in 1u64..5,
        split in 1u64..3,
        heads in 1u64..4,
        states in 1u64..5,
        content in 1u64..5,
        pick in any::<prop::sample::Index>(),
    ) {
        let tensors = views(order, layers, [blocks * split, heads, states, content], 4096);
        let layout = KvLayout::new(&tensors, Some(blocks)).unwrap();
        let block = pick.index(usize::try_from(blocks).unwrap()) as u64;
        let list = layout.scatter(BlockId::new(u32::try_from(block).unwrap())).unwrap();
        prop_assert_eq!(list.bytes(), layout.block_bytes());
        prop_assert_eq!(addresses(&list), naive(&tensors, blocks, block));
    }

    #[test]
    fn blocks_never_overlap(
        order in prop::sample::select(vec!["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]),
        layers in 1u64..3, blocks in 2u64..5, heads in 1u64..3, states in 1u64..4, content in 1u64..4,
    ) {
        let layout = KvLayout::new(&views(order, layers, [blocks, heads, states, content], 0), None).unwrap();
        let mut all: Vec<u64> = (0..blocks)
            .flat_map(|id| addresses(&layout.scatter(BlockId::new(u32::try_from(id).unwrap())).unwrap()))
            .collect();
        let total = all.len();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), total);
    }
}

#[test]
fn tensors_lie_in_runs_of_memory() {
    let bytes = 4 * 2 * 16 * 8 * 2;
    // Each layer apart, directly after each other: one run. Layers between the blocks: the same run.
    for order in ["LBHNC", "BLHNC"] {
        assert_eq!(TensorView::spans(&views(order, 3, [4, 2, 16, 8], 1000)), [(1000, 3 * bytes)], "{order}");
    }
    let mut apart = views("LBHNC", 2, [4, 2, 16, 8], 1000);
    apart[0].address += 100_000;
    apart.push(TensorView { shape: vec![0, 4], strides: vec![4, 1], address: 7, item_bytes: 1 });
    apart.push(TensorView { shape: vec![2, 2], strides: vec![u64::MAX, 1], address: 7, item_bytes: 1 });
    assert_eq!(TensorView::spans(&apart), [(1000 + bytes, bytes), (101_000, bytes)]);
}
