//! Log lines for the operator. The host adds the plugin's and the endpoint's
//! name, and limits their length and rate.
//!
//! ```
//! use mortise_plugin_sdk::log;
//! log::info!("loaded {} layers", 3);
//! ```

pub use crate::{
    __log_debug as debug, __log_error as error, __log_info as info, __log_warn as warn,
};

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Writes one line; natively, to standard error.
pub fn write(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::model::mortise::plugin::log as raw;
        let level = match level {
            Level::Error => raw::Level::Error,
            Level::Warn => raw::Level::Warn,
            Level::Info => raw::Level::Info,
            Level::Debug => raw::Level::Debug,
        };
        raw::write(level, message);
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Makes a panic a log line with its place; without it the host sees only a
/// trap. Called before a plugin is loaded.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| write(Level::Error, &info.to_string())));
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, &::std::format!($($arg)*)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warn, &::std::format!($($arg)*)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($arg)*)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($arg)*)) };
}
