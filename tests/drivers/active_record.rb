# Active Record on both databases, with prepared statements and without: migrations under its advisory lock,
# models, locks, bulk statements, what switches foreign keys off, threads.

require_relative 'common'
require 'active_record'

POSTGRES = ENV.fetch('POINTSMAN_ENGINE') == 'postgresql'
WHERE = POSTGRES ? 'SELECT inet_server_port()' : 'SELECT @@port'
SETTINGS = POSTGRES ? { statement_timeout: '50s' } : { innodb_lock_wait_timeout: 7 }
SET = POSTGRES ? "SELECT concat_ws(' ', current_setting('statement_timeout'), current_setting('TimeZone'))" : 'SELECT CONCAT_WS(" ", @@innodb_lock_wait_timeout, @@sql_mode)'
EPOCH = { created_at: Time.at(0), updated_at: Time.at(0) }.freeze

class Book < ActiveRecord::Base
  has_many :pages
  validates :isbn, uniqueness: true
end

class Page < ActiveRecord::Base
  belongs_to :book
end

class MakeBooks < ActiveRecord::Migration[6.1]
  def change
    create_table :books do |t|
      t.string :title
      t.integer :isbn
      t.integer :lock_version, default: 0
      t.decimal :price, precision: 8, scale: 2
      t.timestamps
      t.index :isbn, unique: true
    end
    create_table(:pages) { |t| t.references :book, foreign_key: true }
  end
end

class AddShelf < ActiveRecord::Migration[6.1]
  disable_ddl_transaction!

  def change
    add_column :books, :shelf, :string
    add_index :books, :shelf, **(POSTGRES ? { algorithm: :concurrently } : {})
  end
end

def connect(prepared)
  adapter = POSTGRES ? { adapter: 'postgresql', encoding: 'unicode' } : { adapter: 'mysql2', encoding: 'utf8mb4' }
  login = { host: HOST, port: PORT, username: USER, password: PASSWORD, database: DATABASE }
  ActiveRecord::Base.establish_connection(**adapter, **login, prepared_statements: prepared, variables: SETTINGS)
end

def db
  ActiveRecord::Base.connection
end

def migrations
  [MakeBooks, AddShelf].each_with_index.map do |migration, index|
    proxy = ActiveRecord::MigrationProxy.new(migration.name, index + 1, '', nil)
    proxy.instance_variable_set(:@migration, migration.new(migration.name, index + 1))
    proxy
  end
end

def migrate(direction, *version)
  ActiveRecord::SchemaMigration.create_table
  ActiveRecord::InternalMetadata.create_table
  ActiveRecord::Migrator.new(direction, migrations, ActiveRecord::SchemaMigration, *version).migrate
  [Book, Page].each(&:reset_column_information)
  told 'migrated', ActiveRecord::SchemaMigration.all_versions, db.tables.sort
end

def models
  told 'columns', Book.column_names, db.indexes(:books).map(&:name).sort, db.foreign_keys(:pages).size
  10.times do |n|
    book = Book.create!(title: "Bøök '#{n}'", isbn: n, price: 1.5)
    told 'created', book.id, Book.count, Book.find(book.id).title, Book.find_by(isbn: n).price.to_s
  end
  Book.first.pages.create!
  told 'joined', Book.includes(:pages).order(:id).first.pages.size, Page.joins(:book).where(books: { isbn: 0 }).count
  told 'asked', Book.where(isbn: 1..5).order(:isbn).limit(2).pluck(:title), Book.where(isbn: [1, 2]).sum(:price).to_s, Book.exists?(isbn: 77)
  refused('taken') { Book.new(isbn: 1).save!(validate: false) }
  told 'taken', Book.create(isbn: 1).errors.full_messages
  ours, theirs = Book.find_by(isbn: 5), Book.find_by(isbn: 5)
  ours.update!(title: 'ours')
  refused('stale') { theirs.update!(title: 'theirs') }
  Book.insert_all((100...400).map { |n| { title: "row #{n}", isbn: n, **EPOCH } })
  Book.upsert_all([{ title: 'row', isbn: 100, **EPOCH }], **(POSTGRES ? { unique_by: :isbn } : {}))
  rows = 0
  Book.find_each(batch_size: 50) { rows += 1 }
  told 'rows', rows, Book.find_by(isbn: 100).title, Book.where(isbn: 7).explain.empty?
end

def transactions
  Book.transaction do
    on_primary 'a transaction', db.select_value(WHERE)
    Book.lock.find_by(isbn: 2).update!(title: 'locked')
    Book.transaction(requires_new: true) { Book.where(isbn: 3).delete_all; raise ActiveRecord::Rollback }
  end
  refused('undone') { Book.transaction { Book.where(isbn: 3).delete_all; raise 'on purpose' } }
  Book.transaction(isolation: :serializable) { told 'serializable', Book.count }
  told 'kept', Book.find_by(isbn: 2).title, Book.find_by(isbn: 3).title
  counts = Array.new(5) do |n|
    Thread.new { ActiveRecord::Base.connection_pool.with_connection { Book.create!(isbn: 1000 + n) && Book.where(isbn: 1000 + n).count } }
  end
  told 'threads', counts.map(&:value)
end

def sessions
  key = POSTGRES ? 77 : 'key'
  told 'locks', db.get_advisory_lock(key), db.release_advisory_lock(key)
  refused('a foreign key') { db.execute 'INSERT INTO pages (book_id) VALUES (123456)' }
  # Fixtures switch foreign keys off and on. PostgreSQL lets superusers only.
  db.disable_referential_integrity { Page.delete_all } unless POSTGRES
  db.truncate_tables 'pages' unless POSTGRES
  db.reconnect!
  refused('a foreign key') { db.execute 'INSERT INTO pages (book_id) VALUES (123456)' }
  db.add_column :books, :late, :integer
  Book.reset_column_information
  told 'added', Book.find_by(isbn: 7).late
end

ActiveRecord::Migration.verbose = false
[true, false].each do |prepared|
  connect(prepared)
  soon_on_replicas('reads behind writes') { db.select_value(WHERE) }
  10.times { on_replicas 'reads', db.select_value(WHERE) }
  told 'set', db.select_value(SET)
  migrate :up
  models
  transactions
  sessions
  migrate :down, 0
  %i[schema_migrations ar_internal_metadata].each { |table| db.drop_table table }
  ActiveRecord::Base.connection_pool.disconnect!
end
