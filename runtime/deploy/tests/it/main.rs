//! The deployer from outside, over plugins that are written in a line.

mod crashes;
mod fixture;
mod lifecycle;
mod selftests;
mod stores;
