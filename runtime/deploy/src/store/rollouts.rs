//! Rows of rollouts. State, counts and weight change together.

use super::records::{
    AuditRecord, NewRevision, insert_audit, insert_blobs, insert_revision, insert_version,
};
use super::{Store, db_error, now_ms};
use crate::rollout::{Phase, StoredRollout};
use mortise_types::Result;
use rusqlite::{OptionalExtension, Row, Transaction, params, types::Type};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Who takes over at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RolloutEnd {
    /// The candidate.
    Promote,
    /// The stable version stays.
    Discard,
}

const COLUMNS: &str = "id, endpoint, who, stable, candidate, stable_version, candidate_version, \
    phase, weight, tick, elapsed_ms, started_ms, updated_ms, state, router_state, plan, progress";

impl Store {
    /// Stores a version that gets a share of the traffic, and its rollout.
    /// Returns the rollout's id.
    pub(crate) fn commit_candidate(
        &self,
        new: &NewRevision<'_>,
        rollout: &StoredRollout,
        audit: &AuditRecord,
    ) -> Result<i64> {
        self.transact(|tx| {
            insert_candidate(tx, new)?;
            insert_audit(tx, audit)?;
            insert_rollout(tx, rollout)
        })
    }

    /// Stores what changed about a rollout.
    pub(crate) fn save_rollout(
        &self,
        rollout: &StoredRollout,
        audit: Option<&AuditRecord>,
    ) -> Result<()> {
        self.transact(|tx| {
            update_rollout(tx, rollout)?;
            if let Some(audit) = audit {
                keep_blobs(tx, rollout, &audit.digests)?;
                insert_audit(tx, audit)?;
            }
            Ok(())
        })
    }

    /// Stores the end of a rollout, and who serves from now on.
    pub(crate) fn end_rollout(
        &self,
        rollout: &StoredRollout,
        end: RolloutEnd,
        audit: &AuditRecord,
    ) -> Result<()> {
        self.transact(|tx| {
            update_rollout(tx, rollout)?;
            if end == RolloutEnd::Promote {
                tx.prepare_cached("UPDATE endpoints SET live = ?2, loaded = 1 WHERE name = ?1")?
                    .execute(params![rollout.endpoint, rollout.candidate])?;
            }
            insert_audit(tx, audit)
        })
    }

    pub(crate) fn active_rollout(&self, endpoint: &str) -> Result<Option<StoredRollout>> {
        self.rollout_where(endpoint, "AND phase IN ('running', 'paused')")
    }

    pub(crate) fn last_rollout(&self, endpoint: &str) -> Result<Option<StoredRollout>> {
        self.rollout_where(endpoint, "")
    }

    fn rollout_where(&self, endpoint: &str, filter: &str) -> Result<Option<StoredRollout>> {
        let select = format!(
            "SELECT {COLUMNS} FROM rollouts WHERE endpoint = ?1 {filter} ORDER BY id DESC LIMIT 1"
        );
        let db = self.lock();
        db.prepare_cached(&select)
            .and_then(|mut select| select.query_row([endpoint], stored_rollout).optional())
            .map_err(|error| db_error(&error))
    }
}

/// A version that does not take the live one's place.
pub(super) fn insert_candidate(
    tx: &Transaction<'_>,
    new: &NewRevision<'_>,
) -> rusqlite::Result<()> {
    const RESERVE: &str = "
        UPDATE endpoints SET next_version = max(next_version, ?2 + 1), next_revision = ?3 + 1
        WHERE name = ?1";
    insert_blobs(tx, new.blobs)?;
    insert_version(tx, new)?;
    insert_revision(tx, new)?;
    let numbers = params![new.endpoint, new.numbers.version, new.numbers.revision];
    tx.prepare_cached(RESERVE)?.execute(numbers)?;
    Ok(())
}

fn insert_rollout(tx: &Transaction<'_>, rollout: &StoredRollout) -> rusqlite::Result<i64> {
    const INSERT: &str = "
        INSERT INTO rollouts (endpoint, who, stable, candidate, stable_version, candidate_version,
            phase, weight, tick, elapsed_ms, started_ms, updated_ms, state, router_state, plan,
            progress)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    tx.prepare_cached(INSERT)?.execute(params![
        rollout.endpoint,
        rollout.who,
        rollout.stable,
        rollout.candidate,
        rollout.stable_version,
        rollout.candidate_version,
        rollout.phase.name(),
        rollout.weight,
        rollout.tick,
        rollout.elapsed_ms,
        rollout.started_ms,
        rollout.updated_ms,
        rollout.state,
        rollout.router_state,
        to_json(&rollout.plan)?,
        to_json(&rollout.progress)?,
    ])?;
    Ok(tx.last_insert_rowid())
}

fn update_rollout(tx: &Transaction<'_>, rollout: &StoredRollout) -> rusqlite::Result<()> {
    const UPDATE: &str = "
        UPDATE rollouts SET phase = ?2, weight = ?3, tick = ?4, elapsed_ms = ?5, updated_ms = ?6,
            state = ?7, router_state = ?8, plan = ?9, progress = ?10
        WHERE id = ?1";
    tx.prepare_cached(UPDATE)?.execute(params![
        rollout.id,
        rollout.phase.name(),
        rollout.weight,
        rollout.tick,
        rollout.elapsed_ms,
        now_ms(),
        rollout.state,
        rollout.router_state,
        to_json(&rollout.plan)?,
        to_json(&rollout.progress)?,
    ])?;
    Ok(())
}

/// Files that `gc` must not remove while the candidate's version is kept.
fn keep_blobs(
    tx: &Transaction<'_>,
    rollout: &StoredRollout,
    digests: &[String],
) -> rusqlite::Result<()> {
    insert_blobs(tx, digests)?;
    let mut insert =
        tx.prepare_cached("INSERT OR IGNORE INTO version_blobs VALUES (?1, ?2, ?3)")?;
    for digest in digests {
        insert.execute(params![rollout.endpoint, rollout.candidate_version, digest])?;
    }
    Ok(())
}

fn stored_rollout(row: &Row<'_>) -> rusqlite::Result<StoredRollout> {
    let phase: String = row.get(7)?;
    let known = Phase::ALL.into_iter().find(|known| known.name() == phase);
    Ok(StoredRollout {
        id: row.get(0)?,
        endpoint: row.get(1)?,
        who: row.get(2)?,
        stable: row.get(3)?,
        candidate: row.get(4)?,
        stable_version: row.get(5)?,
        candidate_version: row.get(6)?,
        phase: known.ok_or_else(|| {
            rusqlite::Error::FromSqlConversionFailure(7, Type::Text, phase.into())
        })?,
        weight: row.get(8)?,
        tick: row.get(9)?,
        elapsed_ms: row.get(10)?,
        started_ms: row.get(11)?,
        updated_ms: row.get(12)?,
        state: row.get(13)?,
        router_state: row.get(14)?,
        plan: from_json(row, 15)?,
        progress: from_json(row, 16)?,
    })
}

pub(super) fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}
