// MariaDB Connector/J: prepared statements of the client and of the server, batches, generated keys,
// streaming, setReadOnly, savepoints, procedures, metadata.

import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HashSet;
import java.util.Set;

public class JdbcMysql {
    static final int PRIMARY = Integer.parseInt(System.getenv("PRIMARY_PORT"));
    static final Set<Integer> REPLICAS = new HashSet<>();
    static final String WHERE = "SELECT @@port";

    public static void main(String[] arguments) throws SQLException {
        for (String port : System.getenv("REPLICA_PORTS").split(",")) {
            REPLICAS.add(Integer.parseInt(port));
        }
        for (String options : new String[] {"", "useServerPrepStmts=true", "allowMultiQueries=true&rewriteBatchedStatements=true",
            "useCompression=true", "useCompression=true&useServerPrepStmts=true", "useBulkStmts=true"}) {
            try (Connection db = connect(options)) {
                reads(db, options);
                writes(db, options);
                transactions(db);
                batch(db);
            }
        }
        try (Connection db = connect("")) {
            procedure(db);
        }
        try {
            DriverManager.getConnection(url(""), System.getenv("POINTSMAN_USER"), "wrong").close();
            throw new AssertionError("a wrong password was taken");
        } catch (SQLException refused) {
            check(refused.getErrorCode() == 1045, "1045, not " + refused.getErrorCode());
        }
    }

    static String url(String options) {
        return "jdbc:mariadb://127.0.0.1:" + System.getenv("POINTSMAN_PORT") + "/"
            + System.getenv("POINTSMAN_DATABASE") + "?" + options;
    }

    static Connection connect(String options) throws SQLException {
        return DriverManager.getConnection(url(options), System.getenv("POINTSMAN_USER"), System.getenv("POINTSMAN_PASSWORD"));
    }

    static void reads(Connection db, String options) throws SQLException {
        try (PreparedStatement read = db.prepareStatement(WHERE + " FROM (SELECT 1) o WHERE ? > 0")) {
            for (int n = 1; n <= 20; n++) {
                read.setInt(1, n);
                check(REPLICAS.contains(number(read.executeQuery())), options + ": a read on the primary");
            }
        }
        try (Statement statement = db.createStatement()) {
            check(REPLICAS.contains(number(statement.executeQuery(WHERE))), options + ": a plain read on the primary");
        }
    }

    static void writes(Connection db, String options) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute("DROP TABLE IF EXISTS t");
            statement.execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(40))");
        }
        String insert = "INSERT INTO t (word) VALUES (?)";
        try (PreparedStatement write = db.prepareStatement(insert, Statement.RETURN_GENERATED_KEYS);
             PreparedStatement count = db.prepareStatement("SELECT COUNT(*) FROM t")) {
            for (int n = 1; n <= 30; n++) {
                write.setString(1, "word " + n);
                check(write.executeUpdate() == 1, "one row");
                check(number(write.getGeneratedKeys()) == n, "the generated key");
                check(number(count.executeQuery()) == n, options + ": read my write " + n);
            }
        }
        try (ResultSet tables = db.getMetaData().getTables(db.getCatalog(), null, "t", null)) {
            check(tables.next() && tables.getString("TABLE_NAME").equals("t"), "metadata");
        }
        try (Statement statement = db.createStatement()) {
            statement.executeQuery("SELECT 1 / 0").close();
            check(statement.getWarnings() != null, "warnings of a read");
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
            check(rows == 30, "rows in portions: " + rows);
            db.commit();
        }
        db.setAutoCommit(true);
        check(db.isValid(5), "a ping");
    }

    static void batch(Connection db) throws SQLException {
        try (PreparedStatement insert = db.prepareStatement("INSERT INTO t (word) VALUES (?)")) {
            for (int n = 0; n < 200; n++) {
                insert.setString(1, "batch " + n);
                insert.addBatch();
            }
            check(insert.executeBatch().length == 200, "a batch");
        }
        try (Statement statement = db.createStatement()) {
            check(number(statement.executeQuery("SELECT COUNT(*) FROM t WHERE word LIKE 'batch%'")) == 200, "all of the batch");
        }
    }

    static void procedure(Connection db) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute("CREATE PROCEDURE add_one(INOUT a INT) BEGIN SET a = a + 1; END");
        }
        try (CallableStatement call = db.prepareCall("{call add_one(?)}")) {
            call.registerOutParameter(1, java.sql.Types.INTEGER);
            call.setInt(1, 41);
            call.execute();
            check(call.getInt(1) == 42, "an out parameter");
        }
    }

    static int number(ResultSet result) throws SQLException {
        try (result) {
            check(result.next(), "a row");
            return result.getInt(1);
        }
    }

    static void check(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }
}
