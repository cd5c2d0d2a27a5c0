"""SQLAlchemy before either database: Core in AUTOCOMMIT, the ORM's unit of work, savepoints, reflection, its own pool."""

from common import ENGINE, URL, WHERE as PORT, equal, on_primary, on_replicas
from sqlalchemy import ForeignKey, MetaData, String, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

WHERE = text(PORT)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100))
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


def run(driver):
    engine = create_engine(f"{ENGINE}+{driver}://{URL}", pool_size=3)
    reading = engine.execution_options(isolation_level="AUTOCOMMIT")
    with reading.connect() as db:
        on_replicas([db.scalar(WHERE) for _ in range(20)], f"{driver}: autocommit reads")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Author(name=f"author {n}", books=[Book(title=f"book {n}.{b}") for b in range(3)]) for n in range(20)])
        on_primary([session.scalar(WHERE)], f"{driver}: a read in a transaction")
        session.commit()
        authors = session.scalars(select(Author).options(selectinload(Author.books)).order_by(Author.id)).all()
        equal([len(author.books) for author in authors], [3] * 20)
        first, second = authors[0].id, authors[1].id
        with session.begin_nested() as savepoint:
            authors[0].name = "undone"
            session.flush()
            savepoint.rollback()
        authors[1].name = "done"
        session.delete(authors[2])
        session.commit()
    with Session(engine) as session:
        equal(session.scalar(select(func.count()).select_from(Book)), 57)
        equal(session.scalar(select(Author.name).where(Author.id == first)), "author 0")
        equal(session.scalar(select(Author.name).where(Author.id == second)), "done")
        locked = session.scalar(select(Author).where(Author.id == second).with_for_update())
        equal(locked.name, "done")

    metadata = MetaData()
    metadata.reflect(engine)
    equal(set(metadata.tables) >= {"author", "book"}, True)
    Base.metadata.drop_all(engine)
    engine.dispose()


for driver in {"postgresql": ["psycopg", "psycopg2"], "mysql": ["pymysql", "mysqldb"]}[ENGINE]:
    run(driver)
