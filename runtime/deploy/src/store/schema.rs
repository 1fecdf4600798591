use super::db_error;
use mortise_types::{Error, Result};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Each entry takes the database from the version that is its index to the
/// next. An entry is never edited once released: a change is a new one.
const MIGRATIONS: [&str; 3] = [INITIAL, ROLLOUTS, TRAFFIC];

const INITIAL: &str = "
    CREATE TABLE blobs (
        digest TEXT PRIMARY KEY
    ) STRICT, WITHOUT ROWID;

    -- `live` is the revision that serves; `loaded` is 0 after `unload`.
    CREATE TABLE endpoints (
        name          TEXT PRIMARY KEY,
        live          INTEGER NOT NULL,
        loaded        INTEGER NOT NULL,
        next_version  INTEGER NOT NULL,
        next_revision INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- `parts` is the JSON of the plugins, assets, configuration and tests.
    CREATE TABLE versions (
        endpoint   TEXT NOT NULL,
        number     INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        who        TEXT NOT NULL,
        parts      TEXT NOT NULL,
        PRIMARY KEY (endpoint, number)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE version_blobs (
        endpoint TEXT NOT NULL,
        version  INTEGER NOT NULL,
        digest   TEXT NOT NULL REFERENCES blobs (digest),
        PRIMARY KEY (endpoint, version, digest),
        FOREIGN KEY (endpoint, version) REFERENCES versions (endpoint, number) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX version_blobs_by_digest ON version_blobs (digest);

    -- `previous` is what was live before: the way back of `rollback`.
    CREATE TABLE revisions (
        endpoint   TEXT NOT NULL,
        number     INTEGER NOT NULL,
        version    INTEGER NOT NULL,
        previous   INTEGER,
        created_ms INTEGER NOT NULL,
        who        TEXT NOT NULL,
        PRIMARY KEY (endpoint, number),
        FOREIGN KEY (endpoint, version) REFERENCES versions (endpoint, number) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX revisions_by_version ON revisions (endpoint, version);

    CREATE TABLE audit (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms    INTEGER NOT NULL,
        who      TEXT NOT NULL,
        action   TEXT NOT NULL,
        endpoint TEXT,
        version  INTEGER,
        revision INTEGER,
        digests  TEXT NOT NULL,
        ok       INTEGER NOT NULL,
        detail   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_by_endpoint ON audit (endpoint, id);
";

/// `stable` and `candidate` are revisions; `state` is the strategy's own, `plan`
/// and `progress` are JSON. One rollout of an endpoint is under way at most.
const ROLLOUTS: &str = "
    CREATE TABLE rollouts (
        id                INTEGER PRIMARY KEY AUTOINCREMENT,
        endpoint          TEXT NOT NULL,
        who               TEXT NOT NULL,
        stable            INTEGER NOT NULL,
        candidate         INTEGER NOT NULL,
        stable_version    INTEGER NOT NULL,
        candidate_version INTEGER NOT NULL,
        phase             TEXT NOT NULL,
        weight            INTEGER NOT NULL,
        tick              INTEGER NOT NULL,
        elapsed_ms        INTEGER NOT NULL,
        started_ms        INTEGER NOT NULL,
        updated_ms        INTEGER NOT NULL,
        state             BLOB NOT NULL,
        router_state      BLOB,
        plan              TEXT NOT NULL,
        progress          TEXT NOT NULL
    ) STRICT;
    CREATE INDEX rollouts_by_endpoint ON rollouts (endpoint, id);
    CREATE UNIQUE INDEX rollouts_active ON rollouts (endpoint)
        WHERE phase IN ('running', 'paused');
";

/// Versions that share an endpoint's traffic with the live one, outside of
/// rollouts: `weight` is in parts of 10,000, `plan` and `totals` are JSON, and
/// `router_state` is the router's own.
const TRAFFIC: &str = "
    CREATE TABLE traffic (
        endpoint     TEXT PRIMARY KEY,
        plan         TEXT NOT NULL,
        router_state BLOB,
        totals       TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE side_versions (
        endpoint TEXT NOT NULL,
        revision INTEGER NOT NULL,
        version  INTEGER NOT NULL,
        weight   INTEGER NOT NULL,
        PRIMARY KEY (endpoint, revision)
    ) STRICT, WITHOUT ROWID;
";

pub(super) fn open(path: &Path) -> Result<Connection> {
    let mut db = Connection::open(path).map_err(|error| db_error(&error))?;
    configure(&db).map_err(|error| db_error(&error))?;
    migrate(&mut db, path)?;
    Ok(db)
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    // FULL syncs the log at every commit: what was acknowledged stays.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", "ON")?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(db: &mut Connection, path: &Path) -> Result<()> {
    let run = |db: &mut Connection| -> rusqlite::Result<usize> {
        let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        for (index, script) in MIGRATIONS.iter().enumerate().skip(found) {
            let migration = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            migration.execute_batch(script)?;
            migration.pragma_update(None, "user_version", index as i64 + 1)?;
            migration.commit()?;
        }
        Ok(found)
    };
    let found = run(db).map_err(|error| db_error(&error))?;
    if found > MIGRATIONS.len() {
        return Err(Error::conflict(format!(
            "{} has schema {found}, and this mortise knows {}: start the newer mortise that wrote \
             it, or choose another --store",
            path.display(),
            MIGRATIONS.len()
        )));
    }
    Ok(())
}
