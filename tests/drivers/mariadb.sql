-- MariaDB's command-line client: comments are sent along, source and \G are its own.
CREATE TABLE book (id INT AUTO_INCREMENT PRIMARY KEY, title VARCHAR(40));
/* a comment
   over lines */
INSERT INTO book (title) VALUES ('one'), ('two'),
  -- in the middle
  ('three');
SELECT CONCAT('rows: ', COUNT(*)) FROM book;
SELECT id, title FROM book WHERE id = 2\G
delimiter //
CREATE PROCEDURE two() BEGIN SELECT 'first'; SELECT 'second'; END//
delimiter ;
CALL two();
SELECT /* pointsman: primary */ CONCAT('primary: ', @@port);
SHOW WARNINGS;
source SOURCED
BEGIN;
DELETE FROM book;
ROLLBACK;
SELECT CONCAT('kept: ', COUNT(*)) FROM book;
status
