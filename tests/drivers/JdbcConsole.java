// MariaDB Connector/J in the console: what its login asks, commands of both kinds, what a pool says.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

public class JdbcConsole {
    public static void main(String[] arguments) throws SQLException {
        for (String options : new String[] {"", "useServerPrepStmts=true"}) {
            String url = "jdbc:mariadb://127.0.0.1:" + System.getenv("POINTSMAN_PORT") + "/?" + options;
            String user = System.getenv("POINTSMAN_USER"), password = System.getenv("POINTSMAN_PASSWORD");
            try (Connection console = DriverManager.getConnection(url, user, password)) {
                try (Statement statement = console.createStatement();
                     ResultSet nodes = statement.executeQuery("SHOW NODES")) {
                    check(count(nodes) == 3, options);
                }
                try (PreparedStatement statement = console.prepareStatement("SHOW NODES")) {
                    for (int round = 0; round < 3; round++) {
                        try (ResultSet nodes = statement.executeQuery()) {
                            check(count(nodes) == 3, options);
                        }
                    }
                }
                try (PreparedStatement statement = console.prepareStatement("SHOW SECRETS")) {
                    statement.executeQuery();
                    throw new AssertionError("there are no secrets");
                } catch (SQLException refused) {
                    check(refused.getErrorCode() == 1064, "1064, not " + refused.getErrorCode());
                }
                console.setAutoCommit(false);
                console.commit();
                console.setAutoCommit(true);
                check(console.isValid(5), "it is there");
            }
        }
    }

    /// The rows of SHOW NODES, whose numbers are numbers.
    static int count(ResultSet nodes) throws SQLException {
        int rows = 0;
        while (nodes.next()) {
            check(nodes.getLong("in_use") >= 0 && nodes.getDouble("weight") >= 0, "numbers");
            check(nodes.getString("node").contains(":"), "a name");
            rows++;
        }
        return rows;
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
