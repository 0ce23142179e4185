BEGIN TRANSACTION;
CREATE TABLE dead (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL,
            id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
            time REAL NOT NULL, attempts INTEGER NOT NULL, dead_headers TEXT NOT NULL,
            PRIMARY KEY (gid, seq)
        );
INSERT INTO "dead" VALUES(125561848389444,1,'29ab82fe36e2b56d-1','orders.eu','{"n":1,"text":"Zürich \"quoted\" \\   😀"}','{"trace": "x\"y", "\u00fc": "\u00f6"}',1.7960885911667606831e+09,1,'{"trace": "x\"y", "\u00fc": "\u00f6", "abe-dead-reason": "bad", "abe-dead-traceback": "", "abe-dead-attempts": "1", "abe-dead-time": "1796088591.187929", "abe-dead-id": "29ab82fe36e2b56d-1", "abe-dead-key": "orders.eu"}');
CREATE TABLE delayed (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, due REAL NOT NULL,
            attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "delayed" VALUES(125561848389444,2,1.79608919118770861628e+09,1);
INSERT INTO "delayed" VALUES(125561848389444,6,1.79608919118252921111e+09,0);
CREATE TABLE groups (
            gid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, cursor INTEGER NOT NULL
        );
INSERT INTO "groups" VALUES(8197602083822,'audit',1);
INSERT INTO "groups" VALUES(125561848389444,'',6);
CREATE TABLE leased (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, token INTEGER NOT NULL,
            due REAL NOT NULL, attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "leased" VALUES(125561848389444,5,4309933319878200040,1.79608919118663835521e+09,1);
CREATE TABLE messages (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
            time REAL NOT NULL, visible REAL
        );
INSERT INTO "messages" VALUES(2,'29ab82fe36e2b56d-2','orders.us','{"n":2}',NULL,1.79608859117054939268e+09,0.0);
INSERT INTO "messages" VALUES(3,'29ab82fe36e2b56d-3','orders.us','{"n":3}',NULL,1.79608859117055249211e+09,0.0);
INSERT INTO "messages" VALUES(4,'29ab82fe36e2b56d-4','orders.us','{"n":4}',NULL,1.79608859117055487636e+09,0.0);
INSERT INTO "messages" VALUES(5,'29ab82fe36e2b56d-5','other','{"n":5,"float":0.1,"big":1152921504606846976,"deep":[{"a":[null,true]}]}',NULL,1.79608859117271661763e+09,0.0);
INSERT INTO "messages" VALUES(6,'29ab82fe36e2b56d-6','orders.later','{"n":6}',NULL,1.7960885911825413704e+09,1.79608919118252921111e+09);
INSERT INTO "messages" VALUES(7,'29ab82fe36e2b56d-7','orders.new','{"n":7}',NULL,1.79608859120236945151e+09,0.0);
CREATE TABLE ready (
            gid INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL,
            attempts INTEGER NOT NULL, PRIMARY KEY (gid, seq)
        ) WITHOUT ROWID;
INSERT INTO "ready" VALUES(125561848389444,3,'orders.us',1);
CREATE INDEX ready_by_key ON ready (gid, key, seq);
CREATE INDEX delayed_by_due ON delayed (gid, due);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('messages',7);
COMMIT;
PRAGMA application_id = 1633838385;
PRAGMA user_version = 1;
