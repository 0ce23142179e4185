BEGIN TRANSACTION;
CREATE TABLE begun (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, number INTEGER NOT NULL,
            PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
CREATE TABLE clock (boot TEXT NOT NULL, start REAL NOT NULL);
INSERT INTO "clock" VALUES('an earlier boot',1.7960730356978750229e+09);
CREATE TABLE dead (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL,
            id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
            time REAL NOT NULL, attempts INTEGER NOT NULL, dead_headers TEXT NOT NULL,
            PRIMARY KEY (gid, seq)
        );
INSERT INTO "dead" VALUES(116166003882992,1,'396aa57833b92950-1','orders.eu','{"n":1,"text":"Zürich \"quoted\" \\   😀"}','{"trace": "x\"y", "\u00fc": "\u00f6"}',1.7960885925667190552e+09,1,'{"trace": "x\"y", "\u00fc": "\u00f6", "abe-dead-reason": "bad", "abe-dead-traceback": "", "abe-dead-attempts": "1", "abe-dead-time": "1796088592.586488", "abe-dead-id": "396aa57833b92950-1", "abe-dead-key": "orders.eu"}');
CREATE TABLE delayed (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, due REAL NOT NULL,
            attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "delayed" VALUES(116166003882992,2,1.79608919258619785311e+09,1);
INSERT INTO "delayed" VALUES(116166003882992,6,1.79608919257853126526e+09,0);
CREATE TABLE groups (
            gid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, cursor INTEGER NOT NULL
        );
INSERT INTO "groups" VALUES(92232595692869,'audit',1);
INSERT INTO "groups" VALUES(116166003882992,'',6);
CREATE TABLE leased (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, token INTEGER NOT NULL,
            due REAL NOT NULL, attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "leased" VALUES(116166003882992,5,4037752309497932098,1.79608919258287286755e+09,1);
CREATE TABLE messages (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
            time REAL NOT NULL, visible REAL
        );
INSERT INTO "messages" VALUES(2,'396aa57833b92950-2','orders.us','{"n":2}',NULL,1.79608859257016420366e+09,0.0);
INSERT INTO "messages" VALUES(3,'396aa57833b92950-3','orders.us','{"n":3}',NULL,1.79608859257016730305e+09,0.0);
INSERT INTO "messages" VALUES(4,'396aa57833b92950-4','orders.us','{"n":4}',NULL,1.79608859257016944882e+09,0.0);
INSERT INTO "messages" VALUES(5,'396aa57833b92950-5','other','{"n":5,"float":0.1,"big":1152921504606846976,"deep":[{"a":[null,true]}]}',NULL,1.79608859257465124127e+09,0.0);
INSERT INTO "messages" VALUES(6,'396aa57833b92950-6','orders.later','{"n":6}',NULL,1.79608859257855677602e+09,1.79608919257853126526e+09);
INSERT INTO "messages" VALUES(7,'396aa57833b92950-7','orders.new','{"n":7}',NULL,1.79608859259719228743e+09,0.0);
CREATE TABLE ready (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL,
            attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "ready" VALUES(116166003882992,3,'orders.us',1);
CREATE INDEX ready_by_key ON ready (gid, key, seq);
CREATE INDEX delayed_by_due ON delayed (gid, due);
CREATE INDEX dead_by_age ON dead (gid);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('messages',7);
COMMIT;
PRAGMA application_id = 1633838385;
PRAGMA user_version = 2;
