//! Plain loops compiled for the widest vectors that the machine has. The
//! program itself is built for the oldest machines it may run on.

use rten_simd::{Isa, SimdOp};

/// A loop that the compiler vectorises by itself.
pub(crate) trait Loop {
    type Output;

    /// Must be `#[inline(always)]`, and so must what it calls, or the loop is
    /// compiled for the oldest machine all the same.
    fn run(self) -> Self::Output;
}

/// Runs a loop with the best instructions of this machine.
pub(crate) fn widest<L: Loop>(body: L) -> L::Output {
    Widest(body).dispatch()
}

struct Widest<L>(L);

impl<L: Loop> SimdOp for Widest<L> {
    type Output = L::Output;

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) -> L::Output {
        self.0.run()
    }
}
