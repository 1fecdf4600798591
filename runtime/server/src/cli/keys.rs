use super::args::{KeysAction, KeysArgs};
use crate::auth;
use anyhow::Result;

/// Changes a file of API keys; needs no server.
///
/// # Errors
/// When the name is taken, unknown or not one, or the file cannot be used.
pub(crate) fn run(args: &KeysArgs) -> Result<()> {
    match &args.action {
        KeysAction::Add(key) => {
            println!("{}", auth::add_key(&key.file, &key.name)?);
            eprintln!("this is shown once: {} keeps only its digest", key.file.display());
        }
        KeysAction::Remove(key) => {
            auth::remove_key(&key.file, &key.name)?;
            println!("{} has no key any more", key.name);
        }
    }
    Ok(())
}
