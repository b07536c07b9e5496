//! Ways to move along the Stiefel manifold (Absil, Mahony & Sepulchre 2008, §4.1.1), all for orthonormal columns.

pub(crate) mod cayley;
pub(crate) mod inverse;
pub(crate) mod polar;
pub(crate) mod qr;

use serde::{Deserialize, Serialize};

/// How a tangent step ends on the Stiefel manifold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retraction {
    /// The nearest point to `X + U`, by matrix products alone. Of second order: it follows the geodesic of the Euclidean
    /// metric one order further than the others.
    #[default]
    Polar,
    /// The orthogonal factor of `X + U`, the diagonal of its R positive, as geoopt does it. A Cholesky factorisation of
    /// `p × p` numbers is done on the host.
    Qr,
    /// The curve `(I − W/2)⁻¹(I + W/2) X` (Wen & Yin 2013), by matrix products alone. It stays on the manifold as well as
    /// the point it starts from.
    Cayley,
}
