//! What people and their monitors ask over plain HTTP, on the port of the rpcs: `/health` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use super::service::Book;

/// The text format of `OpenMetrics`, which Prometheus reads.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The routes. Everything else is a plain 404.
pub(super) fn routes(book: Arc<Book>, stopped: watch::Receiver<bool>) -> Router {
    let scraped = Arc::clone(&book);
    Router::new()
        .route("/health", get(move || async move { health(&book, *stopped.borrow()) }))
        .route("/metrics", get(move || async move { ([(header::CONTENT_TYPE, METRICS_TYPE)], scraped.metrics_text()) }))
}

/// 200 while it serves, 503 once it stops.
fn health(book: &Book, stopping: bool) -> impl IntoResponse + use<> {
    let report = book.report();
    let (code, status) =
        if stopping { (StatusCode::SERVICE_UNAVAILABLE, "stopping") } else { (StatusCode::OK, "serving") };
    let body = format!(
        "{{\"status\":\"{status}\",\"role\":\"single\",\"epoch\":{},\"uptime_ms\":{},\"nodes\":{},\"objects\":{}}}\n",
        report.epoch.get(),
        report.uptime_ms,
        report.nodes.len(),
        report.objects,
    );
    (code, [(header::CONTENT_TYPE, "application/json")], body)
}
