//! Commands about prepared statements, whose ids are ours.

use std::sync::Arc;

use super::{Frontend, malformed, no_statement};
use crate::{
    mysql::{
        command::{Command, code},
        packet::{self, HEADER, capability as can, u32_le},
        parameters::Binding,
        prepared::{self, Handle, LongDataFault, NEWEST, Statement},
    },
    protocol::{Fault, Request},
    refusal::RefusalKind,
    sql::{
        self, Access, Effect, Intent, LexModes, Reason,
        effects::{PinReason, ProxyCommand},
    },
};

/// ER_STMT_HAS_NO_OPEN_CURSOR.
const NO_CURSOR: u16 = 1421;

/// ER_WRONG_ARGUMENTS.
const WRONG_ARGUMENTS: u16 = 1210;

/// Flags of COM_STMT_EXECUTE that ask for a cursor; one of the others tells that attributes follow.
const CURSOR_TYPES: u8 = 7;

impl Frontend {
    pub(super) async fn prepare(&mut self, text: &[u8]) -> Result<Option<Request<Command>>, Fault> {
        self.statements.begin();
        if self.statements.is_full() {
            let message = format!("Can't create more than {} prepared statements", prepared::MAX_STATEMENTS);
            self.reject(RefusalKind::DuplicateStatement, message).await?;
            return Ok(None);
        }
        let (modes, generation) = (self.modes, self.generation());
        let intent = self.judge(modes, text);
        let rewritten = self.rewritten(&intent, text);
        let text = rewritten.as_deref().unwrap_or(text);
        let settings = self.carried.now().clone();
        let key = match sql::shows_definition(text, self.modes) {
            false => Statement::key_of(text, &settings),
            true => self.statements.key_of_its_own(self.number),
        };
        let mut wire = self.command(code::STMT_PREPARE);
        let later = intent.effects.iter().filter_map(|effect| match effect {
            Effect::NeedsLast(left) => Some(Effect::AsksLater(*left)),
            _ => None,
        });
        // It is no transaction's, and must not begin the one that SET TRANSACTION spoke of.
        let reason = if self.next_said { Reason::Session } else { intent.reason };
        let bare = Intent { effects: later.collect(), reason, plain: false, ..Intent::clone(&intent) };
        let bare = Intent { outdoes: false, ..bare };
        // The number of its parameters comes with the answer.
        let statement =
            Statement { text: text.into(), settings, key, modes, intent, generation, parameters: 0 };
        wire.rewritten = rewritten;
        wire.statement = Some((0, Arc::new(statement)));
        Ok(Some(Request { intent: self.closing_cursor(Arc::new(bare)), wire }))
    }

    /// In the server's words, which name the function that was given the id: MariaDB has one for each
    /// command, MySQL one for all.
    async fn unknown_statement(&mut self, id: u32, by: &str) -> Result<Option<Request<Command>>, Fault> {
        let by = if self.mariadb { by } else { "mysql_stmt_precheck" };
        let message = format!("Unknown prepared statement handler ({id}) given to {by}");
        self.reject(RefusalKind::UnknownStatement, message).await?;
        Ok(None)
    }

    /// The id that a COM_STMT_… begins with, and what follows it.
    pub(super) fn statement_id<'a>(&self, argument: &'a [u8]) -> Option<(u32, &'a [u8])> {
        let (id, rest) = u32_le(argument)?;
        match self.statements.newest() {
            Some(newest) if id == NEWEST && self.capabilities & can::STMT_BULK_OPERATIONS != 0 => {
                Some((newest, rest))
            }
            _ => Some((id, rest)),
        }
    }

    pub(super) async fn execute(&mut self, argument: &[u8]) -> Result<Option<Request<Command>>, Fault> {
        let Some((id, &[flags, ..])) = self.statement_id(argument) else { return Err(malformed()) };
        let named = self.sends_attributes();
        let wire = self.command(code::STMT_EXECUTE);
        let Some(handle) = self.statements.get_mut(id) else {
            return self.unknown_statement(id, "mysqld_stmt_execute").await;
        };
        let binding = Binding::of_execute(argument, handle.statement.parameters, named);
        if let Some(fault) = handle.long_data_fault {
            return self.without_long_data(id, fault).await;
        }
        let own = binding.as_ref().and_then(|binding| sets_own(handle, binding, argument, self.modes));
        let mut request = self.executed(id, wire, binding, flags & CURSOR_TYPES != 0);
        if let (Some(request), Some(own)) = (&mut request, own) {
            request.intent = Arc::new(Intent::of_proxy(own));
        }
        Ok(request)
    }

    /// Many executions in one; only of statements that write, says the server.
    pub(super) async fn bulk_execute(&mut self, argument: &[u8]) -> Result<Option<Request<Command>>, Fault> {
        let Some((id, _)) = self.statement_id(argument) else { return Err(malformed()) };
        let wire = self.command(code::STMT_BULK_EXECUTE);
        let Some(handle) = self.statements.get_mut(id) else {
            return self.unknown_statement(id, "mysqld_stmt_execute").await;
        };
        let binding = Binding::of_bulk(argument, handle.statement.parameters);
        if let Some(fault) = handle.long_data_fault {
            return self.without_long_data(id, fault).await;
        }
        Ok(self.executed(id, wire, binding, false))
    }

    /// Keeps a long value, or a part of one, for the execution.
    pub(super) async fn long_data(&mut self) -> Result<(), Fault> {
        let packets = &self.inbox.data()[..self.unconsumed];
        let argument = packets.get(HEADER + 1..).unwrap_or_default();
        let Some((id, &[low, high, ..])) = self.statement_id(argument) else {
            return self.short_long_data().await;
        };
        self.statements.keep_long_data(id, u16::from_le_bytes([low, high]), packets);
        self.consume();
        Ok(())
    }

    /// MySQL answers what is too short, though nobody waits for an answer; MariaDB says nothing.
    async fn short_long_data(&mut self) -> Result<(), Fault> {
        if self.mariadb {
            self.consume();
            return Ok(());
        }
        self.reject(RefusalKind::Malformed, "Malformed communication packet.".to_owned()).await
    }

    /// The values for an execution are not what they should be.
    async fn without_long_data(
        &mut self,
        id: u32,
        fault: LongDataFault,
    ) -> Result<Option<Request<Command>>, Fault> {
        if fault == LongDataFault::NoParameter {
            let by = if self.mariadb { "mysqld_stmt_send_long_data" } else { "mysql_stmt_precheck" };
            self.consume();
            self.count(RefusalKind::Malformed);
            let mut out = Vec::new();
            let message = format!("Incorrect arguments to {by}");
            packet::put_err(&mut out, self.sequence, WRONG_ARGUMENTS, "HY000", message.as_bytes());
            self.write(&out).await?;
            return Ok(None);
        }
        // As a server where a value is longer than `max_allowed_packet`.
        self.statements.forget_long_data(id);
        let message = format!(
            "Parameters of prepared statements which are set through mysql_send_long_data() are longer than the {} bytes that the proxy keeps",
            prepared::MAX_LONG_DATA
        );
        self.reject(RefusalKind::Internal, message).await?;
        Ok(None)
    }

    /// Values that were sent for an execution are gone with it, also where it failed.
    pub(in crate::mysql) fn forget_values(&mut self, command: &Command) {
        if let (code::STMT_EXECUTE | code::STMT_BULK_EXECUTE, Some((id, _))) =
            (command.code, &command.statement)
        {
            self.statements.forget_long_data(*id);
        }
    }

    /// What a statement to prepare, or one that was prepared, is taken for by what is known now.
    fn judge(&self, modes: LexModes, text: &[u8]) -> Arc<Intent> {
        let intent = self.classify_in(modes, text);
        if intent.statements == 0 { no_statement(&intent) } else { intent }
    }

    /// A catalog or a configuration that was read since, or a replica's refusal, may make another thing of a
    /// statement that was prepared before.
    fn renewed(&mut self, id: u32, statement: &Statement, generation: u64) -> Arc<Statement> {
        let intent = self.judge(statement.modes, &statement.text);
        let renewed = Arc::new(Statement { intent, generation, ..statement.clone() });
        if let Some(handle) = self.statements.get_mut(id) {
            handle.statement = renewed.clone();
        }
        renewed
    }

    /// An execution of a statement that is there.
    fn executed(
        &mut self,
        id: u32,
        mut wire: Command,
        binding: Option<Binding>,
        opens_cursor: bool,
    ) -> Option<Request<Command>> {
        let generation = self.generation();
        let handle = self.statements.get_mut(id)?;
        if let Some(types) = binding.and_then(|binding| binding.types) {
            handle.types = types;
        }
        handle.cursor |= opens_cursor;
        let mut statement = handle.statement.clone();
        if statement.generation != generation {
            statement = self.renewed(id, &statement, generation);
        }
        let mut intent = statement.intent.clone();
        if !intent.effects.is_empty() {
            intent = self.behind(intent);
            wire.text =
                std::str::from_utf8(&statement.text).ok().filter(|_| intent.statements == 1).map(Into::into);
            intent = self.completion.applied_to(intent, wire.text.as_deref(), self.modes);
        }
        if opens_cursor && intent.access == Access::Read {
            let mut kept = Intent::clone(&intent);
            (kept.access, kept.reason) = (Access::Write, Reason::State);
            kept.effects.push(Effect::Pin(PinReason::Cursor));
            intent = Arc::new(kept);
        }
        wire.statement = Some((id, statement));
        Some(Request { intent: self.closing_cursor(intent), wire })
    }

    pub(super) async fn of_statement(
        &mut self,
        code: u8,
        argument: &[u8],
    ) -> Result<Option<Request<Command>>, Fault> {
        let Some((id, _)) = self.statement_id(argument) else { return Err(malformed()) };
        let mut wire = self.command(code);
        let Some(handle) = self.statements.get_mut(id) else {
            let by = if code == code::STMT_RESET { "mysqld_stmt_reset" } else { "mysqld_stmt_fetch" };
            return self.unknown_statement(id, by).await;
        };
        let statement = handle.statement.clone();
        let had_cursor =
            if code == code::STMT_RESET { std::mem::take(&mut handle.cursor) } else { handle.cursor };
        self.statements.forget_long_data(id);
        if !had_cursor {
            if code == code::STMT_FETCH {
                self.consume();
                let mut out = Vec::new();
                // The two servers differ in the full stop.
                let stop = if self.mariadb { "" } else { "." };
                let message = format!("The statement ({id}) has no open cursor{stop}");
                packet::put_err(&mut out, 1, NO_CURSOR, "HY000", message.as_bytes());
                self.write(&out).await?;
            } else {
                self.consume();
                self.tell_done().await?;
            }
            return Ok(None);
        }
        self.cursor_closed |= code == code::STMT_RESET;
        wire.statement = Some((id, statement));
        let intent = Intent { access: Access::Write, reason: Reason::State, ..Intent::of_session(1) };
        Ok(Some(Request { intent: self.closing_cursor(Arc::new(intent)), wire }))
    }
}

/// What an execution of `SET @pointsman_name = ?` sets.
fn sets_own(handle: &Handle, binding: &Binding, argument: &[u8], modes: LexModes) -> Option<ProxyCommand> {
    let [Effect::Proxy(ProxyCommand::SetComputed { .. })] = &handle.statement.intent.effects[..] else {
        return None;
    };
    let types = binding.types.as_deref().unwrap_or(&handle.types);
    let value = binding.only_text(argument, types).filter(|_| handle.long_data.is_empty())?;
    sql::bound_variable(&handle.statement.text, modes, value)
}
