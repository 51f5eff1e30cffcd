BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('7');
CREATE TABLE attempts (
	job INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	boot VARCHAR(64) NOT NULL, 
	started VARCHAR(32) NOT NULL, 
	ended VARCHAR(32), 
	how VARCHAR(20), 
	message TEXT NOT NULL, place BIGINT, 
	PRIMARY KEY (job, number), 
	FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "attempts" VALUES(1,1,'boot','2026-01-02T03:04:08.000000Z','2026-01-02T03:04:10.000000Z','succeeded','',10);
INSERT INTO "attempts" VALUES(2,1,'boot','2026-01-02T03:04:12.000000Z','2026-01-02T03:04:13.000000Z','crashed','Its processes ended without a word.',20);
INSERT INTO "attempts" VALUES(2,2,'boot','2026-01-02T03:04:14.000000Z','2026-01-02T03:04:15.000000Z','crashed','Its processes ended without a word.',20);
INSERT INTO "attempts" VALUES(2,3,'boot','2026-01-02T03:04:16.000000Z','2026-01-02T03:04:18.000000Z','crashed','Its processes ended without a word.',20);
CREATE TABLE jobs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	token INTEGER NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	config TEXT NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	code VARCHAR(20), 
	message TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	crashes INTEGER NOT NULL, 
	cancel_asked BOOLEAN NOT NULL, 
	pinned BOOLEAN NOT NULL, 
	deleted BOOLEAN NOT NULL, 
	n_bytes BIGINT NOT NULL, 
	submitted VARCHAR(32) NOT NULL, 
	started VARCHAR(32), 
	ended VARCHAR(32), kept VARCHAR(20) DEFAULT 'all' NOT NULL, freed_bytes BIGINT DEFAULT '0' NOT NULL, reduced VARCHAR(32), sweeping BOOLEAN DEFAULT 0 NOT NULL, 
	FOREIGN KEY(token) REFERENCES tokens (id)
);
INSERT INTO "jobs" VALUES(1,1,'prune','{"density":0.1,"kind":"prune"}','succeeded',NULL,'',1,0,0,1,0,12345,'2026-01-02T03:04:07.000000Z','2026-01-02T03:04:08.000000Z','2026-01-02T03:04:09.000000Z','all',0,NULL,0);
INSERT INTO "jobs" VALUES(2,1,'prune','{"density":0.1,"kind":"prune","seed":1}','failed','crashed','Its processes ended without a word.',3,3,0,0,0,0,'2026-01-02T03:04:11.000000Z','2026-01-02T03:04:16.000000Z','2026-01-02T03:04:17.000000Z','results',7,'2026-01-09T03:04:25.000000Z',0);
INSERT INTO "jobs" VALUES(3,1,'prune','{"density":0.1,"kind":"prune","seed":2}','cancelled',NULL,'It was cancelled before it began.',0,0,0,0,0,0,'2026-01-02T03:04:19.000000Z',NULL,'2026-01-02T03:04:20.000000Z','all',0,NULL,0);
INSERT INTO "jobs" VALUES(4,1,'prune','{"density":0.1,"kind":"prune","seed":3}','queued',NULL,'',0,0,0,0,0,0,'2026-01-02T03:04:21.000000Z',NULL,NULL,'all',0,NULL,0);
CREATE TABLE keys (
	token INTEGER NOT NULL, 
	"key" VARCHAR(200) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	job INTEGER NOT NULL, 
	PRIMARY KEY (token, "key"), 
	FOREIGN KEY(token) REFERENCES tokens (id), 
	FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "keys" VALUES(1,'again','e0db30c18df843f5ec5560ff85efe0588066e01f0442a203a2ce4aa773c60f6e',4);
CREATE TABLE sessions (
	hash VARCHAR(64) NOT NULL, 
	token INTEGER NOT NULL, 
	until VARCHAR(32) NOT NULL, 
	PRIMARY KEY (hash), 
	FOREIGN KEY(token) REFERENCES tokens (id)
);
INSERT INTO "sessions" VALUES('f07bb4b8ddc0e599d3a5853a4148b51f182c5789e5ee8d64dd4ed0bf8720e879',1,'2026-01-02T15:05:00.000000Z');
CREATE TABLE tokens (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name VARCHAR(200) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	scopes VARCHAR(100) NOT NULL, 
	made VARCHAR(32) NOT NULL, 
	expires VARCHAR(32), 
	revoked VARCHAR(32), 
	max_running INTEGER NOT NULL, 
	max_queued INTEGER NOT NULL, 
	max_stored_bytes BIGINT NOT NULL, 
	served INTEGER NOT NULL, owner INTEGER, 
	UNIQUE (hash)
);
INSERT INTO "tokens" VALUES(1,'Ada','8a794e74c7d52b103bed3e6c3c1a179da518e3d66a745b2fb9fa99120c81a6fd','admin','2026-01-02T03:04:06.000000Z',NULL,NULL,1,100,10737418240,4,NULL);
INSERT INTO "tokens" VALUES(2,'Ada''s screen','9b916b14c44ba408712fed4de35e2eb4dce9dd57a3d874789e9b3f7d650434d2','read','2026-01-02T03:05:00.000000Z',NULL,NULL,1,100,10737418240,0,1);
CREATE TABLE uploads (
	token INTEGER NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	kind VARCHAR(20) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	n_bytes BIGINT NOT NULL, 
	made VARCHAR(32) NOT NULL, 
	facts TEXT NOT NULL, used VARCHAR(32), 
	PRIMARY KEY (token, sha256), 
	FOREIGN KEY(token) REFERENCES tokens (id)
);
INSERT INTO "uploads" VALUES(1,'abababababababababababababababababababababababababababababababab','masks','mine',7,'2026-01-02T03:04:05.000000Z','{"density":0.1}','2026-01-02T03:06:00.000000Z');
CREATE INDEX jobs_listed ON jobs (deleted, id);
CREATE INDEX jobs_state ON jobs (deleted, state, id);
CREATE INDEX jobs_token_state ON jobs (token, deleted, state, id);
CREATE INDEX jobs_token ON jobs (token, deleted, id);
CREATE INDEX jobs_stored ON jobs (token, n_bytes);
CREATE INDEX keys_job ON keys (job);
CREATE INDEX jobs_kept ON jobs (deleted, kept, ended);
CREATE INDEX jobs_sweeping ON jobs (sweeping);
CREATE INDEX uploads_used ON uploads (used);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('tokens',2);
INSERT INTO "sqlite_sequence" VALUES('jobs',4);
COMMIT;
