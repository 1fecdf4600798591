//! The exported functions `predict` and `apply` by hand, after the component
//! model's canonical ABI: wit-bindgen cannot lift their list of borrowed
//! handles. Both have the type
//! `func(inputs: list<borrow<tensor>>) -> result<list<tensor>, error>`.

use crate::bindings::model::mortise::plugin::tensor as raw;
use crate::plugin::run_loaded;
use crate::{Error, Result, Tensor};
use std::cell::RefCell;

/// `result<list<tensor>, error>` as it lies in memory: for `Ok` the list's
/// pointer and length are in `first` and `second`; for `Err`, `first` is the
/// case of the error and its message follows.
#[doc(hidden)]
#[repr(C)]
pub struct ReturnArea {
    is_error: u8,
    first: usize,
    second: usize,
    third: usize,
}

/// The answer to a call, which the host reads after the call has returned.
struct Answer {
    area: ReturnArea,
    handles: Vec<u32>,
    message: String,
}

thread_local! {
    /// The next call frees it: a post-return function that did would be one
    /// more entry into the plugin for each call.
    static ANSWER: RefCell<Answer> = const {
        RefCell::new(Answer {
            area: ReturnArea { is_error: 0, first: 0, second: 0, third: 0 },
            handles: Vec::new(),
            message: String::new(),
        })
    };
}

/// Runs the loaded plugin. What it returns is valid until the next call.
///
/// # Safety
/// Called by the host only: `handles` points to `count` handles in memory of
/// the global allocator, which this function takes over.
#[doc(hidden)]
pub unsafe fn run(handles: *mut u32, count: usize) -> *const ReturnArea {
    let handles = if count == 0 {
        Vec::new()
    } else {
        // SAFETY: the host allocated the list through `cabi_realloc`, which
        // uses the global allocator with the layout of `[u32; count]`.
        unsafe { Vec::from_raw_parts(handles, count, count) }
    };
    // SAFETY: each is a valid handle of a borrowed tensor.
    let inputs: Vec<Tensor> = handles
        .iter()
        .map(|&handle| Tensor::lent(unsafe { raw::Tensor::from_handle(handle) }))
        .collect();
    let result = run_loaded(&inputs).and_then(take_handles);
    for &handle in &handles {
        // SAFETY: the lent tensors do not drop their handles; this does, once,
        // since a borrowed handle must be dropped before the call returns.
        drop(unsafe { raw::Tensor::from_handle(handle) });
    }
    ANSWER.with_borrow_mut(|answer| {
        answer.set(result);
        &raw const answer.area
    })
}

fn take_handles(tensors: Vec<Tensor>) -> Result<Vec<u32>> {
    tensors.into_iter().map(Tensor::into_handle).collect()
}

impl Answer {
    fn set(&mut self, result: Result<Vec<u32>>) {
        let (handles, error) = match result {
            Ok(handles) => (handles, None),
            Err(Error::Invalid(message)) => (Vec::new(), Some((0, message))),
            Err(Error::Unsupported(message)) => (Vec::new(), Some((1, message))),
            Err(Error::Failed(message)) => (Vec::new(), Some((2, message))),
        };
        self.handles = handles;
        self.area = match error {
            None => {
                let list = self.handles.as_ptr() as usize;
                ReturnArea { is_error: 0, first: list, second: self.handles.len(), third: 0 }
            }
            Some((case, message)) => {
                self.message = message;
                let text = self.message.as_ptr() as usize;
                ReturnArea { is_error: 1, first: case, second: text, third: self.message.len() }
            }
        };
    }
}

/// Exports the function of the given name.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_run {
    ($name:literal) => {
        #[unsafe(export_name = $name)]
        unsafe extern "C" fn mortise_run(
            handles: *mut u32,
            count: usize,
        ) -> *const $crate::__private::abi::ReturnArea {
            // SAFETY: the host calls with the arguments that the ABI states.
            unsafe { $crate::__private::abi::run(handles, count) }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_results_are_laid_out_and_replaced() {
        ANSWER.with_borrow_mut(|answer| {
            answer.set(Err(Error::failed("no")));
            let area = &answer.area;
            assert_eq!((area.is_error, area.first, area.third), (1, 2, 2));
            assert_eq!(area.second, answer.message.as_ptr() as usize);
            answer.set(Ok(vec![7, 9]));
            let area = &answer.area;
            assert_eq!((area.is_error, area.second), (0, 2));
            assert_eq!(area.first, answer.handles.as_ptr() as usize);
        });
    }
}
