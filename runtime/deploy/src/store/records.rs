//! Rows in and out of the database.

use super::traffic::delete_traffic;
use super::{Store, db_error, now_ms};
use crate::quantize::QuantizeInfo;
use crate::serving::ServingInfo;
use crate::status::{AssetInfo, AuditEntry, AuditQuery, PartInfo, RevisionInfo, VersionInfo};
use mortise_types::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

/// An endpoint as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredEndpoint {
    pub(crate) name: String,
    pub(crate) loaded: bool,
    /// The live revision.
    pub(crate) live: RevisionInfo,
}

/// The numbers that a new deployment gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) version: u64,
    pub(crate) revision: u64,
    /// The live revision, which a rollback of the new one goes back to.
    pub(crate) previous: Option<u64>,
}

/// A revision about to be committed.
pub(crate) struct NewRevision<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) numbers: Numbers,
    pub(crate) version: &'a VersionInfo,
    /// Digest of every file of the version.
    pub(crate) blobs: &'a [String],
}

/// A line for the audit log; the time is added.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditRecord {
    pub(crate) who: String,
    pub(crate) action: &'static str,
    pub(crate) endpoint: Option<String>,
    pub(crate) version: Option<u64>,
    pub(crate) revision: Option<u64>,
    pub(crate) digests: Vec<String>,
    pub(crate) ok: bool,
    pub(crate) detail: String,
}

/// The JSON column of `versions`.
#[derive(Serialize, Deserialize)]
struct Parts {
    model: PartInfo,
    transforms: Vec<PartInfo>,
    tests_digest: Option<String>,
    test_data: Vec<AssetInfo>,
    /// Absent from versions older than it.
    #[serde(default)]
    serving: ServingInfo,
    #[serde(default)]
    quantize: Option<QuantizeInfo>,
}

const SELECT_REVISION: &str = "
    SELECT r.number, r.previous, r.created_ms, r.who, v.number, v.created_ms, v.who, v.parts,
           e.live, e.name, e.loaded
    FROM revisions r
    JOIN versions v ON v.endpoint = r.endpoint AND v.number = r.version
    JOIN endpoints e ON e.name = r.endpoint";

impl Store {
    /// Every endpoint by name, with its live revision.
    pub(crate) fn endpoints(&self) -> Result<Vec<StoredEndpoint>> {
        let filter = "WHERE r.number = e.live ORDER BY e.name";
        self.select(filter, [], stored_endpoint)
    }

    /// # Errors
    /// `NotFound` when there is no such endpoint.
    pub(crate) fn endpoint(&self, name: &str) -> Result<StoredEndpoint> {
        let filter = "WHERE e.name = ?1 AND r.number = e.live";
        let found = self.select(filter, [name], stored_endpoint)?;
        found.into_iter().next().ok_or_else(|| {
            Error::not_found(format!(
                "there is no endpoint \"{name}\"; `mortise status` lists those there are"
            ))
        })
    }

    /// Newest first.
    pub(crate) fn revisions(&self, name: &str) -> Result<Vec<RevisionInfo>> {
        let filter = "WHERE e.name = ?1 ORDER BY r.number DESC";
        self.select(filter, [name], revision_info)
    }

    pub(crate) fn revision(&self, name: &str, number: u64) -> Result<Option<RevisionInfo>> {
        let filter = "WHERE e.name = ?1 AND r.number = ?2";
        Ok(self.select(filter, params![name, number], revision_info)?.into_iter().next())
    }

    /// Numbers for a deployment that is about to begin. They stay free while
    /// the caller is the only one to deploy to this endpoint.
    ///
    /// # Errors
    /// `Conflict` when the explicit version exists.
    pub(crate) fn next_numbers(&self, name: &str, explicit: Option<u64>) -> Result<Numbers> {
        let db = self.lock();
        let next = db
            .prepare_cached(
                "SELECT next_version, next_revision, live FROM endpoints WHERE name = ?1",
            )
            .and_then(|mut select| {
                select
                    .query_row([name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .optional()
            })
            .map_err(|error| db_error(&error))?;
        let (next_version, revision, previous) = match next {
            Some((version, revision, live)) => (version, revision, Some(live)),
            None => (1, 1, None),
        };
        if let Some(version) = explicit {
            check_new_version(&db, name, version)?;
        }
        Ok(Numbers { version: explicit.unwrap_or(next_version), revision, previous })
    }

    /// Makes a new revision live: one transaction, durable when it returns.
    pub(crate) fn commit_live(&self, new: &NewRevision<'_>, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| {
            insert_blobs(tx, new.blobs)?;
            insert_version(tx, new)?;
            insert_revision(tx, new)?;
            upsert_endpoint(tx, new)?;
            insert_audit(tx, audit)
        })
    }

    /// Points an endpoint at a revision that it has, and marks it as loaded.
    pub(crate) fn set_live(&self, name: &str, number: u64, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| {
            tx.prepare_cached("UPDATE endpoints SET live = ?2, loaded = 1 WHERE name = ?1")?
                .execute(params![name, number])?;
            insert_audit(tx, audit)
        })
    }

    pub(crate) fn set_loaded(&self, name: &str, loaded: bool, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| {
            tx.prepare_cached("UPDATE endpoints SET loaded = ?2 WHERE name = ?1")?
                .execute(params![name, loaded])?;
            insert_audit(tx, audit)
        })
    }

    /// Forgets an endpoint with its versions and revisions.
    pub(crate) fn delete_endpoint(&self, name: &str, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| {
            tx.execute("DELETE FROM rollouts WHERE endpoint = ?1", [name])?;
            delete_traffic(tx, name)?;
            tx.execute("DELETE FROM revisions WHERE endpoint = ?1", [name])?;
            tx.execute("DELETE FROM versions WHERE endpoint = ?1", [name])?;
            tx.execute("DELETE FROM endpoints WHERE name = ?1", [name])?;
            insert_audit(tx, audit)
        })
    }

    pub(crate) fn append_audit(&self, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| insert_audit(tx, audit))
    }

    /// Newest first.
    pub(crate) fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        const SELECT: &str = "
            SELECT id, at_ms, who, action, endpoint, version, revision, digests, ok, detail
            FROM audit WHERE (?1 IS NULL OR endpoint = ?1) AND (?2 IS NULL OR id < ?2)
            ORDER BY id DESC LIMIT ?3";
        let limit = query.limit.min(1_000);
        let db = self.lock();
        let read = || -> rusqlite::Result<Vec<AuditEntry>> {
            let mut select = db.prepare_cached(SELECT)?;
            select
                .query_map(params![query.endpoint, query.before_id, limit], audit_entry)?
                .collect()
        };
        read().map_err(|error| db_error(&error))
    }

    /// Why the newest deployment of an endpoint failed, if it did. One that was
    /// refused before it began, and so has no revision, says nothing about it.
    pub(crate) fn last_failure(&self, name: &str) -> Result<Option<String>> {
        const SELECT: &str = "
            SELECT ok, detail FROM audit WHERE endpoint = ?1 AND action = 'deploy' AND revision NOT NULL
            ORDER BY id DESC LIMIT 1";
        let db = self.lock();
        let newest = db
            .prepare_cached(SELECT)
            .and_then(|mut select| {
                select.query_row([name], |row| Ok((row.get::<_, bool>(0)?, row.get(1)?))).optional()
            })
            .map_err(|error| db_error(&error))?;
        Ok(newest.and_then(|(ok, detail)| (!ok).then_some(detail)))
    }

    /// `(endpoints, versions)`
    pub(crate) fn counts(&self) -> Result<(u64, u64)> {
        const SELECT: &str =
            "SELECT (SELECT count(*) FROM endpoints), (SELECT count(*) FROM versions)";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.lock().query_row(SELECT, [], read).map_err(|error| db_error(&error))
    }

    pub(super) fn lock(&self) -> parking_lot::MutexGuard<'_, Connection> {
        self.db.lock()
    }

    pub(super) fn transact<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut db = self.lock();
        let run = || {
            let tx = db.transaction()?;
            let value = work(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run().map_err(|error: rusqlite::Error| db_error(&error))
    }

    fn select<T>(
        &self,
        filter: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let db = self.lock();
        let run = || -> rusqlite::Result<Vec<T>> {
            let mut select = db.prepare_cached(&format!("{SELECT_REVISION} {filter}"))?;
            select.query_map(params, read)?.collect()
        };
        run().map_err(|error| db_error(&error))
    }
}

pub(super) fn blob_is_known(db: &Connection, digest: &str) -> Result<bool> {
    db.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1")
        .and_then(|mut select| select.exists([digest]))
        .map_err(|error| db_error(&error))
}

fn check_new_version(db: &Connection, name: &str, version: u64) -> Result<()> {
    let exists = db
        .prepare_cached("SELECT 1 FROM versions WHERE endpoint = ?1 AND number = ?2")
        .and_then(|mut select| select.exists(params![name, version]))
        .map_err(|error| db_error(&error))?;
    match exists {
        false => Ok(()),
        true => Err(Error::conflict(format!(
            "\"{name}\" already has a version {version}, and versions do not change: leave --version \
             out for the next number, or name a new one"
        ))),
    }
}

pub(super) fn insert_blobs(tx: &Transaction<'_>, blobs: &[String]) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO blobs (digest) VALUES (?1)")?;
    for digest in blobs {
        insert.execute([digest])?;
    }
    Ok(())
}

pub(super) fn insert_version(tx: &Transaction<'_>, new: &NewRevision<'_>) -> rusqlite::Result<()> {
    let version = new.version;
    let parts = Parts {
        model: version.model.clone(),
        transforms: version.transforms.clone(),
        tests_digest: version.tests_digest.clone(),
        test_data: version.test_data.clone(),
        serving: version.serving.clone(),
        quantize: version.quantize.clone(),
    };
    let parts = serde_json::to_string(&parts)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    tx.prepare_cached("INSERT INTO versions VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        new.endpoint,
        version.number,
        version.created_ms,
        version.who,
        parts
    ])?;
    let mut insert =
        tx.prepare_cached("INSERT OR IGNORE INTO version_blobs VALUES (?1, ?2, ?3)")?;
    for digest in new.blobs {
        insert.execute(params![new.endpoint, version.number, digest])?;
    }
    Ok(())
}

pub(super) fn insert_revision(tx: &Transaction<'_>, new: &NewRevision<'_>) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO revisions VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
        params![
            new.endpoint,
            new.numbers.revision,
            new.numbers.version,
            new.numbers.previous,
            new.version.created_ms,
            new.version.who
        ],
    )?;
    Ok(())
}

/// Numbers are never given twice, also when `gc` removed their owners.
fn upsert_endpoint(tx: &Transaction<'_>, new: &NewRevision<'_>) -> rusqlite::Result<()> {
    const UPSERT: &str = "
        INSERT INTO endpoints (name, live, loaded, next_version, next_revision)
        VALUES (?1, ?2, 1, ?3 + 1, ?2 + 1)
        ON CONFLICT (name) DO UPDATE SET live = ?2, loaded = 1,
            next_version = max(next_version, ?3 + 1), next_revision = ?2 + 1";
    tx.prepare_cached(UPSERT)?.execute(params![
        new.endpoint,
        new.numbers.revision,
        new.numbers.version
    ])?;
    Ok(())
}

pub(super) fn insert_audit(tx: &Transaction<'_>, audit: &AuditRecord) -> rusqlite::Result<()> {
    const INSERT: &str = "
        INSERT INTO audit (at_ms, who, action, endpoint, version, revision, digests, ok, detail)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    tx.prepare_cached(INSERT)?.execute(params![
        now_ms(),
        audit.who,
        audit.action,
        audit.endpoint,
        audit.version,
        audit.revision,
        audit.digests.join(" "),
        audit.ok,
        audit.detail
    ])?;
    Ok(())
}

fn audit_entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let digests: String = row.get(7)?;
    Ok(AuditEntry {
        id: row.get(0)?,
        at_ms: row.get(1)?,
        who: row.get(2)?,
        action: row.get(3)?,
        endpoint: row.get(4)?,
        version: row.get(5)?,
        revision: row.get(6)?,
        digests: digests.split_whitespace().map(str::to_string).collect(),
        ok: row.get(8)?,
        detail: row.get(9)?,
    })
}

fn stored_endpoint(row: &Row<'_>) -> rusqlite::Result<StoredEndpoint> {
    Ok(StoredEndpoint { name: row.get(9)?, loaded: row.get(10)?, live: revision_info(row)? })
}

fn revision_info(row: &Row<'_>) -> rusqlite::Result<RevisionInfo> {
    let parts: String = row.get(7)?;
    let parts: Parts = serde_json::from_str(&parts).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(7, rusqlite::types::Type::Text, Box::new(error))
    })?;
    let number = row.get(0)?;
    let live: u64 = row.get(8)?;
    Ok(RevisionInfo {
        number,
        previous: row.get(1)?,
        live: number == live,
        created_ms: row.get(2)?,
        who: row.get(3)?,
        version: VersionInfo {
            number: row.get(4)?,
            created_ms: row.get(5)?,
            who: row.get(6)?,
            model: parts.model,
            transforms: parts.transforms,
            tests_digest: parts.tests_digest,
            test_data: parts.test_data,
            serving: parts.serving,
            quantize: parts.quantize,
        },
    })
}
