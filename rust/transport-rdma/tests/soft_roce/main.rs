//! RDMA for real: over any device there is, which in the tests of this tree is Soft-RoCE in a small virtual machine
//! (`make test-rdma`). Without a device every test here is left out but the one about not having any.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on stops; the owner talks on stdout"
)]

mod absence;
mod bench;
mod death;
mod moves;
mod owner;
mod proxy;
mod refusals;
