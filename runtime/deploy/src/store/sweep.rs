//! What `gc` removes: old versions, then files that nothing names.

use super::{AuditRecord, Store};
use crate::status::GcReport;
use mortise_types::Result;
use rusqlite::{Transaction, params};
use std::collections::HashSet;

/// How much `gc` leaves.
#[derive(Clone, Copy)]
pub(crate) struct Keep {
    pub(crate) versions: usize,
    pub(crate) audit_entries: u64,
}

/// Versions beyond the newest `?1` of their endpoint that are neither live nor
/// where a rollback would go nor the candidate of a rollout nor beside the live
/// one.
const DELETE_VERSIONS: &str = "
    WITH ranked AS (
        SELECT endpoint, number,
               row_number() OVER (PARTITION BY endpoint ORDER BY created_ms DESC, number DESC) AS age
        FROM versions
    ), needed AS (
        SELECT e.name AS endpoint, r.version FROM endpoints e
        JOIN revisions r ON r.endpoint = e.name AND (
            r.number = e.live OR r.number = (
                SELECT previous FROM revisions WHERE endpoint = e.name AND number = e.live))
        UNION SELECT endpoint, candidate_version FROM rollouts
        WHERE phase IN ('running', 'paused')
        UNION SELECT endpoint, version FROM side_versions
    )
    DELETE FROM versions WHERE (endpoint, number) IN (
        SELECT endpoint, number FROM ranked WHERE age > ?1
        EXCEPT SELECT endpoint, version FROM needed)";

impl Store {
    /// Removes what is beyond `keep` and every file that no version names and
    /// no deployment is about to name. Rows go first, so that a crash in
    /// between leaves files that the next run finds.
    pub(crate) fn sweep(&self, keep: Keep, who: &str) -> Result<GcReport> {
        // Held throughout: a deployment pins its files before it asks which of
        // them are known, and so waits here.
        let pins = self.blobs.pins().0.lock();
        let pinned: HashSet<&str> = pins.keys().map(String::as_str).collect();
        let mut report = GcReport::default();
        let named = self.transact(|tx| {
            delete_rows(tx, keep, &pinned, &mut report)?;
            let mut select = tx.prepare("SELECT digest FROM blobs")?;
            let named: rusqlite::Result<HashSet<String>> =
                select.query_map([], |row| row.get(0))?.collect();
            named
        })?;
        for (digest, size_bytes) in self.blobs.list()? {
            if !named.contains(&digest) && !pinned.contains(digest.as_str()) {
                self.blobs.remove(&digest)?;
                report.blobs_removed += 1;
                report.bytes_freed += size_bytes;
            }
        }
        drop(pins);
        self.append_audit(&AuditRecord {
            who: who.to_string(),
            action: "gc",
            ok: true,
            detail: format!(
                "removed {} versions and {} files of {} bytes",
                report.versions_removed, report.blobs_removed, report.bytes_freed
            ),
            ..AuditRecord::default()
        })?;
        Ok(report)
    }

    /// `(files, bytes)` in the blob folder.
    pub(crate) fn blob_usage(&self) -> Result<(u64, u64)> {
        let files = self.blobs.list()?;
        Ok((files.len() as u64, files.iter().map(|(_, size)| size).sum()))
    }
}

fn delete_rows(
    tx: &Transaction<'_>,
    keep: Keep,
    pinned: &HashSet<&str>,
    report: &mut GcReport,
) -> rusqlite::Result<()> {
    report.versions_removed = tx.execute(DELETE_VERSIONS, params![keep.versions as u64])? as u64;
    report.audit_entries_removed = tx.execute(
        "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
        params![keep.audit_entries],
    )? as u64;
    let unnamed: Vec<String> = tx
        .prepare("SELECT digest FROM blobs WHERE digest NOT IN (SELECT digest FROM version_blobs)")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut delete = tx.prepare("DELETE FROM blobs WHERE digest = ?1")?;
    for digest in unnamed.iter().filter(|digest| !pinned.contains(digest.as_str())) {
        delete.execute([digest])?;
    }
    Ok(())
}
