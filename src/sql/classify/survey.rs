//! Walks a parsed query and lists what matters: calls, relations, locks, writes.

use std::ops::ControlFlow;

use sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, DataType, Expr, FromTable, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, Select, Statement, TableFactor, TableObject,
    TableWithJoins, Value, Visit, Visitor,
};

use crate::sql::Dialect;

/// A possibly qualified name, folded; the schema is the part before the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub schema: Option<String>,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub function: Named,
    /// The last argument is the word TRUE (`set_config(…, true)`).
    pub ends_in_true: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Into {
    Table,
    Temporary,
}

/// What one statement holds.
#[derive(Debug)]
pub(super) struct Survey {
    pub calls: Vec<Call>,
    pub relations: Vec<Named>,
    /// Targets of INSERT, UPDATE, DELETE and MERGE.
    pub targets: Vec<Named>,
    pub locks: bool,
    pub into: Option<Into>,
    pub writes: bool,
    /// INSERT or MERGE: column defaults may draw from sequences.
    pub inserts: bool,
    /// Something that a query should not hold, or a name that is not plain.
    pub strange: bool,
    /// `OPERATOR(schema.op)`, not of `pg_catalog`.
    pub foreign_operator: bool,
    /// An operator that is not PostgreSQL's own; an extension's, most likely.
    pub added_operator: bool,
    /// A literal may name a relation or a type, or a type is named that may be a user's.
    pub by_text: bool,
    dialect: Dialect,
    scopes: Vec<Scope>,
    /// The name of a table function that is about to be visited as a relation.
    function_in_from: Option<*const ObjectName>,
}

/// The WITH list of a query that is being walked.
#[derive(Debug)]
struct Scope {
    query: *const Query,
    names: Vec<String>,
    bodies: Vec<*const Query>,
    recursive: bool,
    /// Which body is being walked: it sees only what stands before it.
    inside: Option<usize>,
}

impl Survey {
    pub fn of(statement: &Statement, dialect: Dialect) -> Self {
        let mut survey = Self {
            calls: Vec::new(),
            relations: Vec::new(),
            targets: Vec::new(),
            locks: false,
            into: None,
            writes: false,
            inserts: false,
            strange: false,
            foreign_operator: false,
            added_operator: false,
            by_text: false,
            dialect,
            scopes: Vec::new(),
            function_in_from: None,
        };
        let _: ControlFlow<()> = statement.visit(&mut survey);
        survey
    }

    fn fold(&self, ident: &Ident) -> String {
        match self.dialect {
            Dialect::Postgres if ident.quote_style.is_some() => ident.value.clone(),
            Dialect::Postgres => ident.value.to_ascii_lowercase(),
            Dialect::Mysql => ident.value.to_lowercase(),
        }
    }

    fn named(&mut self, name: &ObjectName) -> Option<Named> {
        let mut parts = name.0.iter().rev().map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(self.fold(ident)),
            ObjectNamePart::Function(_) => None,
        });
        let last = parts.next().flatten();
        let schema = parts.next().flatten();
        match last {
            Some(name) => Some(Named { schema, name }),
            None => {
                self.strange = true;
                None
            }
        }
    }

    fn call(&mut self, name: &ObjectName, arguments: Option<&FunctionArguments>) {
        let list = match arguments {
            Some(FunctionArguments::List(list)) => &list.args[..],
            _ => &[],
        };
        let ends_in_true = list.last().is_some_and(is_true);
        self.by_text |= list.iter().any(is_text);
        if let Some(function) = self.named(name) {
            self.calls.push(Call { function, ends_in_true });
        }
    }

    fn target(&mut self, name: &ObjectName) {
        if let Some(named) = self.named(name) {
            self.targets.push(named);
        }
    }

    fn target_factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Table { name, .. } => self.target(name),
            // An UPDATE or DELETE of a join may have derived tables beside its targets.
            TableFactor::Derived { .. } => {}
            TableFactor::NestedJoin { table_with_joins, .. } => self.target_joined(table_with_joins),
            _ => self.strange = true,
        }
    }

    fn target_joined(&mut self, joined: &TableWithJoins) {
        self.target_factor(&joined.relation);
        for join in &joined.joins {
            self.target_factor(&join.relation);
        }
    }

    /// Whether an unqualified name means a WITH query here.
    fn is_shadowed(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| {
            let visible = match scope.inside {
                Some(index) if !scope.recursive => &scope.names[..index],
                _ => &scope.names[..],
            };
            visible.iter().any(|shadow| shadow == name)
        })
    }
}

/// Whether an argument is a string, which the function may take for the name of a relation.
fn is_text(argument: &FunctionArg) -> bool {
    let (FunctionArg::Unnamed(expr) | FunctionArg::Named { arg: expr, .. }) = argument else { return false };
    matches!(expr, FunctionArgExpr::Expr(Expr::Value(value)) if value.value.clone().into_string().is_some())
}

/// Whether a type's input may look up names, or its own name does: `regclass`, a composite type.
fn looks_up_names(data_type: &DataType) -> bool {
    match data_type {
        DataType::Custom(..) | DataType::Regclass => true,
        DataType::Array(
            ArrayElemTypeDef::AngleBracket(of)
            | ArrayElemTypeDef::SquareBracket(of, _)
            | ArrayElemTypeDef::Parenthesis(of),
        ) => looks_up_names(of),
        _ => false,
    }
}

fn is_true(argument: &FunctionArg) -> bool {
    let (FunctionArg::Unnamed(expr) | FunctionArg::Named { arg: expr, .. }) = argument else { return false };
    matches!(expr, FunctionArgExpr::Expr(Expr::Value(value)) if value.value == Value::Boolean(true))
}

impl Visitor for Survey {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.locks |= !query.locks.is_empty();
        if let Some(scope) = self.scopes.last_mut()
            && let Some(index) = scope.bodies.iter().position(|&body| std::ptr::eq(body, query))
        {
            scope.inside = Some(index);
        }
        if let Some(with) = &query.with {
            let names = with.cte_tables.iter().map(|cte| self.fold(&cte.alias.name)).collect();
            let bodies = with.cte_tables.iter().map(|cte| &raw const *cte.query).collect();
            self.scopes.push(Scope { query, names, bodies, recursive: with.recursive, inside: None });
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.scopes.last().is_some_and(|scope| std::ptr::eq(scope.query, query)) {
            self.scopes.pop();
        }
        if let Some(scope) = self.scopes.last_mut()
            && let Some(index) = scope.inside
            && std::ptr::eq(scope.bodies[index], query)
        {
            scope.inside = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if let Some(into) = &select.into {
            self.into = Some(if into.temporary { Into::Temporary } else { Into::Table });
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if self.function_in_from.take_if(|name| std::ptr::eq(*name, relation)).is_some() {
            return ControlFlow::Continue(());
        }
        if let Some(named) = self.named(relation)
            && (named.schema.is_some() || !self.is_shadowed(&named.name))
        {
            self.relations.push(named);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(_), .. } => {
                self.by_text = true;
                self.call(name, None);
                self.function_in_from = Some(name);
            }
            TableFactor::Function { name, .. } => self.call(name, None),
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::TableFunction { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::JsonTable { .. }
            | TableFactor::XmlTable { .. }
            | TableFactor::NestedJoin { .. } => {}
            _ => self.strange = true,
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(Function { name, args, .. }) => self.call(name, Some(args)),
            Expr::BinaryOp { op: BinaryOperator::PGCustomBinaryOperator(parts), .. } => {
                self.foreign_operator |= !matches!(parts.as_slice(), [schema, _] if schema == "pg_catalog");
            }
            Expr::BinaryOp { op: BinaryOperator::Custom(_), .. } => self.added_operator = true,
            Expr::Cast { data_type, .. } => self.by_text |= looks_up_names(data_type),
            Expr::TypedString(typed) => self.by_text |= looks_up_names(&typed.data_type),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => return ControlFlow::Continue(()),
            Statement::Insert(insert) => {
                self.inserts = true;
                match &insert.table {
                    TableObject::TableName(name) => self.target(name),
                    _ => self.strange = true,
                }
            }
            Statement::Update(update) => self.target_joined(&update.table),
            Statement::Delete(delete) => {
                for name in &delete.tables {
                    self.target(name);
                }
                let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
                for joined in from {
                    self.target_joined(joined);
                }
            }
            Statement::Merge(merge) => {
                self.inserts = true;
                self.target_factor(&merge.table);
            }
            _ => self.strange = true,
        }
        self.writes = true;
        ControlFlow::Continue(())
    }
}
