//! psql's door, over pgwire.

use std::{fmt::Debug, io, sync::Arc};

use async_trait::async_trait;
use futures_util::{Sink, stream};
use pgwire::{
    api::{
        ClientInfo, ClientPortalStore, PgWireServerHandlers, Type,
        auth::{
            AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler,
            sasl::{
                SASLAuthStartupHandler,
                scram::{ScramAuth, ScramSecret},
            },
        },
        portal::{Format, Portal},
        query::{ExtendedQueryHandler, SimpleQueryHandler},
        results::{
            DataRowEncoder, DescribePortalResponse, DescribeResponse, DescribeStatementResponse, FieldInfo,
            QueryResponse, Response, Tag,
        },
        stmt::{NoopQueryParser, StoredStatement},
        store::PortalStore,
    },
    error::{ErrorInfo, PgWireError, PgWireResult},
    messages::PgWireBackendMessage,
    tokio::process_socket,
};
use tokio::net::TcpStream;

use super::{
    Answer, Refused,
    command::{self, Command},
    obey,
    table::{Cell, Kind, Table},
};
use crate::{
    admin::control::Control,
    config::{Engine, SecretForm},
    postgres::login::{MockSecret, Verifier},
};

/// Serves one connection to its end.
///
/// # Errors
/// When the connection breaks.
pub async fn serve(socket: TcpStream, control: &Control) -> io::Result<()> {
    process_socket(socket, None, Handlers { control: control.clone() }).await
}

struct Handlers {
    control: Control,
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::new(Queries { control: self.control.clone() })
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::new(Queries { control: self.control.clone() })
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        let mut parameters = DefaultServerParameterProvider::default();
        // The number keeps psql and drivers from working around servers of long ago.
        parameters.server_version = format!("15.0 (pointsman {})", env!("CARGO_PKG_VERSION"));
        let people = People { control: self.control.clone(), mock: MockSecret::random() };
        let scram = ScramAuth::new(Arc::new(people));
        Arc::new(SASLAuthStartupHandler::new(Arc::new(parameters)).with_scram(scram))
    }
}

/// `[admin].users`.
struct People {
    control: Control,
    mock: MockSecret,
}

impl Debug for People {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("People")
    }
}

#[async_trait]
impl AuthSource for People {
    async fn get_password(&self, _: &LoginInfo) -> PgWireResult<Password> {
        // Only SCRAM is offered, and that asks below.
        Err(PgWireError::InvalidPassword(String::new()))
    }

    async fn get_scram_secret(&self, login: &LoginInfo) -> PgWireResult<(ScramSecret, Option<()>)> {
        let name = login.user().unwrap_or_default();
        let secret = super::user(&self.control, name).and_then(|user| user.password);
        let verifier = secret.and_then(|secret| match secret.form(Engine::Postgres) {
            SecretForm::Plain => Some(Verifier::derive(secret.expose())),
            SecretForm::ScramSha256 => Verifier::parse(secret.expose()),
            SecretForm::Md5 | SecretForm::MysqlNative => None,
        });
        // An unknown user fails as a wrong password does.
        let verifier = verifier.unwrap_or_else(|| Verifier::mock(name, &self.mock));
        Ok((verifier.for_pgwire(), None))
    }
}

struct Queries {
    control: Control,
}

#[async_trait]
impl SimpleQueryHandler for Queries {
    async fn do_query<C>(&self, _: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer = obey(&self.control, query).await.map_err(error)?;
        Ok(vec![response(answer, &Format::UnifiedText)?])
    }
}

#[async_trait]
impl ExtendedQueryHandler for Queries {
    type Statement = String;
    type QueryParser = NoopQueryParser;

    fn query_parser(&self) -> Arc<NoopQueryParser> {
        Arc::new(NoopQueryParser)
    }

    async fn do_describe_statement<C>(
        &self,
        _: &mut C,
        target: &StoredStatement<String>,
    ) -> PgWireResult<DescribeStatementResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = String>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let fields = described(&target.statement, &Format::UnifiedText)?;
        Ok(DescribeStatementResponse::new(Vec::new(), fields))
    }

    async fn do_describe_portal<C>(
        &self,
        _: &mut C,
        target: &Portal<String>,
    ) -> PgWireResult<DescribePortalResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = String>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let fields = described(&target.statement.statement, &target.result_column_format)?;
        Ok(if fields.is_empty() {
            DescribePortalResponse::no_data()
        } else {
            DescribePortalResponse::new(fields)
        })
    }

    async fn do_query<C>(&self, _: &mut C, portal: &Portal<String>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = String>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer = obey(&self.control, &portal.statement.statement).await.map_err(error)?;
        response(answer, &portal.result_column_format)
    }
}

/// The columns that a command would answer with.
fn described(text: &str, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    let table = match command::parse(text).map_err(Refused::Syntax).map_err(error)? {
        Command::Show(show) => show.table(),
        Command::Constant(column, _) => Table::new(&[&column]),
        _ => return Ok(Vec::new()),
    };
    Ok(fields(&table, format))
}

fn fields(table: &Table, format: &Format) -> Vec<FieldInfo> {
    let field = |(at, column): (usize, &super::table::Column)| {
        let kind = match column.kind {
            Kind::Text => Type::TEXT,
            Kind::Integer => Type::INT8,
            Kind::Float => Type::FLOAT8,
        };
        FieldInfo::new(column.name.clone(), None, None, kind, format.format_for(at))
    };
    table.columns.iter().enumerate().map(field).collect()
}

fn response(answer: Answer, format: &Format) -> PgWireResult<Response> {
    let table = match answer {
        Answer::Table(table) => table,
        Answer::Done(tag) => return Ok(Response::Execution(Tag::new(tag))),
        Answer::Empty => return Ok(Response::EmptyQuery),
    };
    let schema = Arc::new(fields(&table, format));
    let mut rows = Vec::with_capacity(table.rows.len());
    for row in &table.rows {
        let mut encoder = DataRowEncoder::new(schema.clone());
        for (at, value) in row.iter().enumerate() {
            encode(&mut encoder, &table, at, value)?;
        }
        rows.push(Ok(encoder.take_row()));
    }
    let mut response = QueryResponse::new(schema, stream::iter(rows));
    response.set_command_tag("SHOW");
    Ok(Response::Query(response))
}

fn encode(encoder: &mut DataRowEncoder, table: &Table, at: usize, value: &Cell) -> PgWireResult<()> {
    match table.columns[at].kind {
        Kind::Text => encoder.encode_field(value),
        Kind::Integer => encoder.encode_field(&value.as_ref().and_then(|text| text.parse::<i64>().ok())),
        Kind::Float => encoder.encode_field(&value.as_ref().and_then(|text| text.parse::<f64>().ok())),
    }
}

fn error(refused: Refused) -> PgWireError {
    let code = match refused {
        Refused::Syntax(_) => "42601",
        Refused::Failed(_) => "55000",
    };
    let message = refused.message().to_owned();
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message)))
}
