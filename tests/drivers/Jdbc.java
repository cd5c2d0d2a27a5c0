// pgjdbc: server-side prepared statements from the fifth execution on, batches, generated keys,
// fetch size, setReadOnly, savepoints, metadata.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HashSet;
import java.util.Set;

public class Jdbc {
    static final int PRIMARY = Integer.parseInt(System.getenv("PRIMARY_PORT"));
    static final Set<Integer> REPLICAS = new HashSet<>();
    static final String WHERE = "SELECT inet_server_port()";

    public static void main(String[] arguments) throws SQLException {
        for (String port : System.getenv("REPLICA_PORTS").split(",")) {
            REPLICAS.add(Integer.parseInt(port));
        }
        for (String mode : new String[] {"extended", "simple", "extendedForPrepared", "extendedCacheEverything"}) {
            try (Connection db = connect("preferQueryMode=" + mode)) {
                reads(db, mode);
                writes(db, mode);
                transactions(db);
            }
            // Another session: the first has written and may have to use the primary for a moment.
            try (Connection db = connect("preferQueryMode=" + mode)) {
                readOnly(db);
            }
        }
        try (Connection db = connect("reWriteBatchedInserts=true")) {
            batch(db);
        }
    }

    static Connection connect(String options) throws SQLException {
        String url = "jdbc:postgresql://127.0.0.1:" + System.getenv("POINTSMAN_PORT") + "/"
            + System.getenv("POINTSMAN_DATABASE") + "?" + options;
        return DriverManager.getConnection(url, System.getenv("POINTSMAN_USER"), System.getenv("POINTSMAN_PASSWORD"));
    }

    static void reads(Connection db, String mode) throws SQLException {
        try (PreparedStatement read = db.prepareStatement(WHERE + " WHERE ? > 0")) {
            for (int n = 1; n <= 20; n++) {
                read.setInt(1, n);
                check(REPLICAS.contains(number(read.executeQuery())), mode + ": a read on the primary");
            }
        }
        try (Statement statement = db.createStatement()) {
            check(REPLICAS.contains(number(statement.executeQuery(WHERE))), mode + ": a plain read on the primary");
        }
    }

    static void writes(Connection db, String mode) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute("DROP TABLE IF EXISTS t");
            statement.execute("CREATE TABLE t (id serial PRIMARY KEY, word text)");
        }
        String insert = "INSERT INTO t (word) VALUES (?)";
        try (PreparedStatement write = db.prepareStatement(insert, Statement.RETURN_GENERATED_KEYS);
             PreparedStatement count = db.prepareStatement("SELECT count(*) FROM t")) {
            for (int n = 1; n <= 30; n++) {
                write.setString(1, "word " + n);
                check(write.executeUpdate() == 1, "one row");
                check(number(write.getGeneratedKeys()) == n, "the generated key");
                check(number(count.executeQuery()) == n, mode + ": read my write " + n);
            }
        }
        try (PreparedStatement where = db.prepareStatement(insert + " RETURNING inet_server_port()")) {
            where.setString(1, "where");
            check(number(where.executeQuery()) == PRIMARY, mode + ": a write on a replica");
        }
        try (ResultSet tables = db.getMetaData().getTables(null, "public", "t", null)) {
            check(tables.next() && tables.getString("TABLE_NAME").equals("t"), "metadata");
        }
    }

    static void transactions(Connection db) throws SQLException {
        db.setAutoCommit(false);
        try (Statement statement = db.createStatement()) {
            check(number(statement.executeQuery(WHERE)) == PRIMARY, "a read in a transaction");
            var savepoint = db.setSavepoint();
            statement.execute("DELETE FROM t");
            db.rollback(savepoint);
            statement.setFetchSize(7);
            int rows = 0;
            try (ResultSet result = statement.executeQuery("SELECT * FROM t")) {
                while (result.next()) {
                    rows++;
                }
            }
            check(rows == 31, "rows in portions: " + rows);
            db.commit();
        }
        db.setAutoCommit(true);
    }

    static void readOnly(Connection db) throws SQLException {
        db.setAutoCommit(false);
        db.setReadOnly(true);
        try (Statement statement = db.createStatement()) {
            int port = number(statement.executeQuery(WHERE));
            check(REPLICAS.contains(port), "a read-only transaction on the primary");
            check(number(statement.executeQuery(WHERE)) == port, "a read-only transaction on two servers");
            db.commit();
        }
    }

    static void batch(Connection db) throws SQLException {
        try (PreparedStatement write = db.prepareStatement("INSERT INTO t (word) VALUES (?)")) {
            for (int n = 0; n < 1000; n++) {
                write.setString(1, "batch");
                write.addBatch();
            }
            write.executeBatch();
        }
        try (Statement statement = db.createStatement()) {
            check(number(statement.executeQuery("SELECT count(*) FROM t WHERE word = 'batch'")) == 1000, "the batch");
        }
    }

    static int number(ResultSet rows) throws SQLException {
        try (rows) {
            check(rows.next(), "a row");
            return rows.getInt(1);
        }
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
