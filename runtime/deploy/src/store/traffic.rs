//! Rows of versions that share an endpoint's traffic outside of rollouts.

use super::records::{AuditRecord, NewRevision, insert_audit, insert_blobs};
use super::rollouts::{from_json, insert_candidate, to_json};
use super::{Store, db_error};
use crate::traffic::{Side, StoredTraffic};
use mortise_types::Result;
use rusqlite::{OptionalExtension, Transaction, params};

impl Store {
    /// Stores a version that goes beside the stable one, with the traffic.
    pub(crate) fn commit_beside(
        &self,
        new: &NewRevision<'_>,
        traffic: &StoredTraffic,
        audit: &AuditRecord,
    ) -> Result<()> {
        self.transact(|tx| {
            insert_candidate(tx, new)?;
            write_traffic(tx, traffic)?;
            insert_audit(tx, audit)
        })
    }

    /// Stores who shares the traffic of an endpoint. Nothing is left when the
    /// stable version is alone.
    pub(crate) fn save_traffic(&self, traffic: &StoredTraffic, audit: &AuditRecord) -> Result<()> {
        self.transact(|tx| {
            write_traffic(tx, traffic)?;
            insert_audit(tx, audit)
        })
    }

    /// Makes a revision live that was beside the one that is; a rollback goes
    /// back to that.
    pub(crate) fn promote_side(
        &self,
        traffic: &StoredTraffic,
        number: u64,
        audit: &AuditRecord,
    ) -> Result<()> {
        const PREVIOUS: &str = "
            UPDATE revisions SET previous = (SELECT live FROM endpoints WHERE name = ?1)
            WHERE endpoint = ?1 AND number = ?2";
        self.transact(|tx| {
            tx.prepare_cached(PREVIOUS)?.execute(params![traffic.endpoint, number])?;
            tx.prepare_cached("UPDATE endpoints SET live = ?2, loaded = 1 WHERE name = ?1")?
                .execute(params![traffic.endpoint, number])?;
            write_traffic(tx, traffic)?;
            insert_audit(tx, audit)
        })
    }

    /// Stores counts and what the router learned. Does nothing when the traffic
    /// is no longer shared.
    pub(crate) fn save_traffic_progress(&self, traffic: &StoredTraffic) -> Result<()> {
        const UPDATE: &str =
            "UPDATE traffic SET router_state = ?2, totals = ?3 WHERE endpoint = ?1";
        self.transact(|tx| {
            let totals = to_json(&traffic.totals)?;
            tx.prepare_cached(UPDATE)?.execute(params![
                traffic.endpoint,
                traffic.router_state,
                totals
            ])?;
            Ok(())
        })
    }

    /// `None` when the stable version is alone.
    pub(crate) fn traffic(&self, endpoint: &str) -> Result<Option<StoredTraffic>> {
        const TRAFFIC: &str = "SELECT plan, router_state, totals FROM traffic WHERE endpoint = ?1";
        const SIDES: &str = "
            SELECT revision, version, weight FROM side_versions WHERE endpoint = ?1
            ORDER BY revision";
        let db = self.lock();
        let read = || -> rusqlite::Result<Option<StoredTraffic>> {
            let mut sides = db.prepare_cached(SIDES)?;
            let sides = sides.query_map([endpoint], |row| {
                Ok(Side { revision: row.get(0)?, version: row.get(1)?, weight: row.get(2)? })
            })?;
            let sides = sides.collect::<rusqlite::Result<_>>()?;
            let mut traffic = db.prepare_cached(TRAFFIC)?;
            let traffic = traffic.query_row([endpoint], |row| {
                Ok(StoredTraffic {
                    endpoint: endpoint.to_string(),
                    plan: from_json(row, 0)?,
                    router_state: row.get(1)?,
                    totals: from_json(row, 2)?,
                    sides,
                })
            });
            traffic.optional()
        };
        read().map_err(|error| db_error(&error))
    }
}

/// Forgets the traffic of an endpoint.
pub(super) fn delete_traffic(tx: &Transaction<'_>, endpoint: &str) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM side_versions WHERE endpoint = ?1", [endpoint])?;
    tx.execute("DELETE FROM traffic WHERE endpoint = ?1", [endpoint])?;
    Ok(())
}

fn write_traffic(tx: &Transaction<'_>, traffic: &StoredTraffic) -> rusqlite::Result<()> {
    delete_traffic(tx, &traffic.endpoint)?;
    if traffic.sides.is_empty() {
        return Ok(());
    }
    let (plan, totals) = (to_json(&traffic.plan)?, to_json(&traffic.totals)?);
    tx.prepare_cached("INSERT INTO traffic VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        traffic.endpoint,
        plan,
        traffic.router_state,
        totals
    ])?;
    let digests = traffic.plan.digests();
    insert_blobs(tx, &digests)?;
    let mut insert = tx.prepare_cached("INSERT INTO side_versions VALUES (?1, ?2, ?3, ?4)")?;
    // Files that `gc` must not remove while the version is kept.
    let mut keep = tx.prepare_cached("INSERT OR IGNORE INTO version_blobs VALUES (?1, ?2, ?3)")?;
    for side in &traffic.sides {
        insert.execute(params![traffic.endpoint, side.revision, side.version, side.weight])?;
        for digest in &digests {
            keep.execute(params![traffic.endpoint, side.version, digest])?;
        }
    }
    Ok(())
}
