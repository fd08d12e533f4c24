"""Four processes that insert rows into one database, each saying so as soon
as a row is committed: `sqlite.py work DATABASE JOURNAL`. What is in the
database afterwards: `sqlite.py look DATABASE`."""

import os
import sqlite3
import sys

WORKERS = 4


def connect(path):
    database = sqlite3.connect(path, timeout=300, isolation_level=None)
    database.execute("PRAGMA synchronous = FULL")
    return database


def work(path, worker):
    database = connect(path)
    last = "SELECT coalesce(max(number), 0) FROM rows WHERE worker = ?"
    (number,) = database.execute(last, (worker,)).fetchone()
    while True:
        number += 1
        content = os.urandom(400).hex()
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO rows VALUES (?, ?, ?)", (worker, number, content))
        database.execute("UPDATE totals SET rows = rows + 1 WHERE worker = ?", (worker,))
        database.execute("COMMIT")
        os.write(1, f"{worker} {number}\n".encode())


def look(path):
    database = connect(path)
    print(*database.execute("PRAGMA integrity_check").fetchone())
    for row in database.execute("SELECT worker, number FROM rows"):
        print(*row)
    wrong = database.execute(
        "SELECT worker FROM totals t WHERE rows <> (SELECT count(*) FROM rows r WHERE r.worker = t.worker)"
    ).fetchall()
    print("torn", len(wrong))


if sys.argv[1] == "look":
    look(sys.argv[2])
    sys.exit()
path, journal = sys.argv[2:]
database = connect(path)
(set_journal,) = database.execute(f"PRAGMA journal_mode = {journal}").fetchone()
assert set_journal == journal, set_journal
database.execute("CREATE TABLE IF NOT EXISTS rows (worker, number, content, PRIMARY KEY (worker, number))")
database.execute("CREATE TABLE IF NOT EXISTS totals (worker PRIMARY KEY, rows)")
for worker in range(WORKERS):
    database.execute("INSERT OR IGNORE INTO totals VALUES (?, 0)", (worker,))
database.close()
for worker in range(1, WORKERS):
    if os.fork() == 0:
        work(path, worker)
work(path, 0)
