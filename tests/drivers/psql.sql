-- psql's own questions to the catalog, its COPY, variables, cursors in portions and conditionals.
CREATE TABLE author (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE book (id serial PRIMARY KEY, title text, author int REFERENCES author);
\copy author (name) FROM STDIN
one
two
three
\.
INSERT INTO book (title, author) SELECT 'book of ' || name, id FROM author;
\d book
\dt
\df
\l
\du
\timing on
SELECT count(*) AS count, count(*) > 0 AS any FROM book \gset
\echo rows: :count
\if :any
SELECT title FROM book WHERE author = 2;
\else
SELECT 1/0;
\endif
\set FETCH_COUNT 2
SELECT * FROM book ORDER BY id;
\unset FETCH_COUNT
BEGIN;
DELETE FROM book;
ROLLBACK;
PREPARE titles (int) AS SELECT title FROM book WHERE author = $1;
EXECUTE titles (1);
EXECUTE titles (2);
SELECT 'SELECT ' || id || ' AS made' FROM book \gexec
\conninfo
COPY (SELECT * FROM book ORDER BY id) TO STDOUT;
