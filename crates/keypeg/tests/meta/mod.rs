//! The repository agrees with itself: its texts, its map, the table of routes, and the published
//! documents.

mod modules;
mod openapi;
mod routes;
mod test_script;
mod tidy;
