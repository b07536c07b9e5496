//! stiefel-optim
