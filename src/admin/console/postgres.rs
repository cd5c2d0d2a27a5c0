//! psql's door, over pgwire, which only answers: what clients say is read by [`reader`].

mod reader;

use std::{fmt::Debug, io, sync::Arc};

use async_trait::async_trait;
use futures_util::{Sink, SinkExt, stream};
use pgwire::{
    api::{
        ClientInfo, ClientPortalStore, DefaultClient, METADATA_DATABASE, METADATA_USER, NoopHandler,
        PgWireConnectionState, Type,
        auth::{
            AuthSource, DefaultServerParameterProvider, LoginInfo, Password,
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
    messages::{PgWireBackendMessage, PgWireFrontendMessage},
    tokio::server::{PgWireMessageServerCodec, process_error, process_message},
};
use tokio::{
    io::{AsyncWriteExt, Empty, Join, empty, join},
    net::{TcpStream, tcp::OwnedWriteHalf},
    time::timeout,
};
use tokio_util::codec::Framed;

use self::reader::{Ended, Reader};
use super::{
    Answer, Refused, obey,
    table::{Cell, Kind, Table},
};
use crate::{
    admin::{console::LOGIN_TIMEOUT, control::Control},
    config::{Engine, SecretForm},
    postgres::login::{MockSecret, Verifier},
};

/// The answering half of a connection: pgwire reads nothing from it.
type Answers = Framed<Join<Empty, OwnedWriteHalf>, PgWireMessageServerCodec<String>>;

/// Serves one connection to its end.
///
/// # Errors
/// When the connection breaks, or its client does not keep to the protocol.
pub async fn serve(socket: TcpStream, control: &Control) -> io::Result<()> {
    let peer = socket.peer_addr()?;
    socket.set_nodelay(true)?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = Reader::new(reader);
    let ended = match timeout(LOGIN_TIMEOUT, reader.startup(&mut writer)).await {
        Ok(Ok(startup)) => {
            let codec = PgWireMessageServerCodec::new(DefaultClient::new(peer, false));
            let mut answers = Framed::new(join(empty(), writer), codec);
            answers.set_state(PgWireConnectionState::AwaitingStartup);
            let ended = converse(&mut reader, startup, &mut answers, control).await;
            writer = answers.into_inner().into_inner().1;
            ended
        }
        Ok(Err(ended)) => ended,
        Err(_) => io::Error::from(io::ErrorKind::TimedOut).into(),
    };
    if let Some(words) = ended.last_words() {
        writer.write_all(&words).await?;
    }
    match ended {
        Ended::Left => Ok(()),
        Ended::Io(error) => Err(error),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, other)),
    }
}

/// Answers a client from its startup packet on, until nothing more is read.
async fn converse(
    reader: &mut Reader,
    startup: PgWireFrontendMessage,
    answers: &mut Answers,
    control: &Control,
) -> Ended {
    let conversed = async {
        let login = Arc::new(login(control));
        let entered = async {
            answer(startup, answers, &login, control).await?;
            while !matches!(answers.state(), PgWireConnectionState::ReadyForQuery) {
                answer(reader.proof().await?, answers, &login, control).await?;
            }
            Ok::<_, Ended>(())
        };
        let late = |_| Ended::from(io::Error::from(io::ErrorKind::TimedOut));
        timeout(LOGIN_TIMEOUT, entered).await.map_err(late)??;
        loop {
            answer(reader.next().await?, answers, &login, control).await?;
        }
    };
    let never: Result<std::convert::Infallible, Ended> = conversed.await;
    match never {
        Err(ended) => ended,
        Ok(never) => match never {},
    }
}

/// Answers one message.
async fn answer(
    message: PgWireFrontendMessage,
    answers: &mut Answers,
    login: &Arc<Login>,
    control: &Control,
) -> Result<(), Ended> {
    let extended = message.is_extended_query();
    let queries = Arc::new(Queries { control: control.clone() });
    let nothing = Arc::new(NoopHandler);
    let answered =
        process_message(message, answers, login.clone(), queries.clone(), queries, nothing.clone(), nothing);
    let Err(error) = answered.await else { return Ok(()) };
    if !is_in(answers) {
        let info = match error {
            PgWireError::InvalidPassword(_) => wrong_password(answers),
            error => error.into(),
        };
        answers.send(PgWireBackendMessage::ErrorResponse(info.into())).await?;
        return Err(Ended::Left);
    }
    let fatal = error.is_fatal();
    process_error(answers, error, extended).await?;
    if fatal { Err(Ended::Left) } else { Ok(()) }
}

/// In the server's own words: pgwire's begin with a capital letter and do not know the name.
fn wrong_password(client: &impl ClientInfo) -> ErrorInfo {
    let name = client.metadata().get(METADATA_USER).map_or("", String::as_str);
    let message = format!("password authentication failed for user \"{name}\"");
    ErrorInfo::new("FATAL".to_owned(), "28P01".to_owned(), message)
}

/// Whether the login is behind us.
fn is_in(answers: &Answers) -> bool {
    !matches!(
        answers.state(),
        PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress
    )
}

type Login = SASLAuthStartupHandler<DefaultServerParameterProvider>;

fn login(control: &Control) -> Login {
    let mut parameters = DefaultServerParameterProvider::default();
    // The number keeps psql and drivers from working around servers of long ago.
    parameters.server_version = format!("15.0 (pointsman {})", env!("CARGO_PKG_VERSION"));
    let people = People { control: control.clone(), mock: MockSecret::random() };
    SASLAuthStartupHandler::new(Arc::new(parameters)).with_scram(ScramAuth::new(Arc::new(people)))
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
            SecretForm::Md5 | SecretForm::MysqlNative | SecretForm::MysqlSha2 => None,
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
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer = obey(&self.control, database(client), query).await.map_err(error)?;
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

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<String>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = String>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer =
            obey(&self.control, database(client), &portal.statement.statement).await.map_err(error)?;
        response(answer, &portal.result_column_format)
    }
}

fn database(client: &impl ClientInfo) -> &str {
    client.metadata().get(METADATA_DATABASE).map_or("", String::as_str)
}

/// The columns that a command would answer with.
fn described(text: &str, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    let table = super::described(text).map_err(error)?;
    if table.columns.is_empty() { Ok(Vec::new()) } else { fields(&table, format) }
}

fn fields(table: &Table, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    let wanted = table.columns.len();
    if let Format::Individual(codes) = format
        && codes.len() != wanted
    {
        let message =
            format!("bind message has {} result formats but query has {wanted} columns", codes.len());
        return Err(PgWireError::UserError(Box::new(ErrorInfo::new(
            "ERROR".to_owned(),
            "08P01".to_owned(),
            message,
        ))));
    }
    let field = |(at, column): (usize, &super::table::Column)| {
        let kind = match column.kind {
            Kind::Text => Type::TEXT,
            Kind::Integer => Type::INT8,
            Kind::Float => Type::FLOAT8,
        };
        FieldInfo::new(column.name.clone(), None, None, kind, format.format_for(at))
    };
    Ok(table.columns.iter().enumerate().map(field).collect())
}

fn response(answer: Answer, format: &Format) -> PgWireResult<Response> {
    let table = match answer {
        Answer::Table(table) => table,
        Answer::Done(tag) => return Ok(Response::Execution(Tag::new(tag))),
        Answer::Empty => return Ok(Response::EmptyQuery),
    };
    let schema = Arc::new(fields(&table, format)?);
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
