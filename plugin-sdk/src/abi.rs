//! The exported functions `predict` and `apply` by hand, after the component
//! model's canonical ABI: wit-bindgen cannot lift their list of borrowed
//! handles. Both have the type
//! `func(inputs: list<borrow<tensor>>) -> result<list<tensor>, error>`.

use crate::bindings::model::mortise::plugin::tensor as raw;
use crate::plugin::run_loaded;
use crate::{Error, Result, Tensor};

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

/// Runs the loaded plugin.
///
/// # Safety
/// Called by the host only: `handles` points to `count` handles in memory of
/// the global allocator, which this function takes over. The result must go to
/// [`post_return`].
#[doc(hidden)]
pub unsafe fn run(handles: *mut u32, count: usize) -> *mut ReturnArea {
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
    Box::into_raw(Box::new(ReturnArea::from(result)))
}

/// Frees what [`run`] returned, after the host has read it.
///
/// # Safety
/// `area` comes from [`run`] and is not used again.
#[doc(hidden)]
pub unsafe fn post_return(area: *mut ReturnArea) {
    // SAFETY: `run` made it with `Box::into_raw`.
    let area = unsafe { Box::from_raw(area) };
    // SAFETY: the pointers and lengths are those of the boxed slices that
    // `ReturnArea::from` leaked.
    unsafe {
        if area.is_error == 0 {
            drop(boxed(area.first as *mut u32, area.second));
        } else {
            drop(boxed(area.second as *mut u8, area.third));
        }
    }
}

/// # Safety
/// `start` and `len` come from a leaked `Box<[T]>`.
unsafe fn boxed<T>(start: *mut T, len: usize) -> Box<[T]> {
    // SAFETY: as above.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, len)) }
}

fn take_handles(tensors: Vec<Tensor>) -> Result<Box<[u32]>> {
    tensors.into_iter().map(Tensor::into_handle).collect()
}

impl From<Result<Box<[u32]>>> for ReturnArea {
    fn from(result: Result<Box<[u32]>>) -> Self {
        match result {
            Ok(handles) => {
                let list: &mut [u32] = Box::leak(handles);
                Self { is_error: 0, first: list.as_ptr() as usize, second: list.len(), third: 0 }
            }
            Err(error) => {
                let (case, message) = match error {
                    Error::Invalid(message) => (0, message),
                    Error::Unsupported(message) => (1, message),
                    Error::Failed(message) => (2, message),
                };
                let text: &mut [u8] = Box::leak(message.into_bytes().into_boxed_slice());
                Self { is_error: 1, first: case, second: text.as_ptr() as usize, third: text.len() }
            }
        }
    }
}

/// Exports the function of the given name and its post-return.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_run {
    ($name:literal) => {
        #[unsafe(export_name = $name)]
        unsafe extern "C" fn mortise_run(
            handles: *mut u32,
            count: usize,
        ) -> *mut $crate::__private::abi::ReturnArea {
            // SAFETY: the host calls with the arguments that the ABI states.
            unsafe { $crate::__private::abi::run(handles, count) }
        }

        #[unsafe(export_name = concat!("cabi_post_", $name))]
        unsafe extern "C" fn mortise_post_return(area: *mut $crate::__private::abi::ReturnArea) {
            // SAFETY: the host passes what `mortise_run` returned.
            unsafe { $crate::__private::abi::post_return(area) }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_results_are_laid_out_and_freed() {
        let ok = ReturnArea::from(Ok(vec![7, 9].into_boxed_slice()));
        assert_eq!((ok.is_error, ok.second), (0, 2));
        let error = ReturnArea::from(Err(Error::failed("no")));
        assert_eq!((error.is_error, error.first, error.third), (1, 2, 2));
        for area in [ok, error] {
            // SAFETY: made by `ReturnArea::from`, used once.
            unsafe { post_return(Box::into_raw(Box::new(area))) };
        }
    }
}
