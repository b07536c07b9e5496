//! What every manifold obeys, what geoopt computes, and how the optimisers live in a module.

mod geoopt;
mod laws;
mod modules;
mod points;
