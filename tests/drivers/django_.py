"""Django's ORM before either database: autocommit outside atomic blocks, migrations' DDL, server-side cursors, get_or_create."""

import django
from common import DATABASE, ENGINE, HOST, PASSWORD, PORT, REPLICAS, USER, WHERE, equal, eventually, on_primary, on_replicas
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": f"django.db.backends.{ENGINE}",
            "HOST": HOST,
            "PORT": PORT,
            "USER": USER,
            "PASSWORD": PASSWORD,
            "NAME": DATABASE,
            "CONN_MAX_AGE": None,
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[],
    USE_TZ=True,
    TIME_ZONE="Asia/Karachi",
)
django.setup()

from django.db import IntegrityError, connection, models, transaction  # noqa: E402


class Author(models.Model):
    name = models.CharField(max_length=100, unique=True)

    class Meta:
        app_label = "shop"


class Book(models.Model):
    title = models.CharField(max_length=100)
    author = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")
    at = models.DateTimeField(auto_now_add=True)
    extra = models.JSONField(default=dict)

    class Meta:
        app_label = "shop"


def where():
    with connection.cursor() as cursor:
        cursor.execute(WHERE)
        return cursor.fetchone()[0]


on_replicas([where() for _ in range(20)], "autocommit reads")

with connection.schema_editor() as editor:
    editor.create_model(Author)
    editor.create_model(Book)

for n in range(20):
    author = Author.objects.create(name=f"author {n}")
    equal(Author.objects.count(), n + 1)
    equal(Author.objects.get(pk=author.pk).name, f"author {n}")
Book.objects.bulk_create([Book(title=f"book {n}", author=author, extra={"n": n}) for n in range(500)])
equal(author.books.filter(extra__n__gte=250).count(), 250)
equal(sum(book.extra["n"] for book in Book.objects.iterator(chunk_size=100)), 124750)

_, created = Author.objects.get_or_create(name="author 3")
equal(created, False)
author, created = Author.objects.update_or_create(name="author new", defaults={})
equal(created, True)

with transaction.atomic():
    on_primary([where()], "a read in an atomic block")
    locked = Author.objects.select_for_update().get(name="author 1")
    locked.name = "author one"
    locked.save()
try:
    with transaction.atomic():
        Author.objects.create(name="author five")
        try:
            with transaction.atomic():
                Author.objects.create(name="author 2")
        except IntegrityError:
            pass
        equal(Author.objects.filter(name="author five").exists(), True)
        raise ValueError("undo")
except ValueError:
    pass
equal(Author.objects.filter(name__in=["author one", "author five"]).count(), 1)

Author.objects.filter(name="author 4").delete()
eventually(lambda: where() in REPLICAS, "reads after a write use replicas again")

with connection.schema_editor() as editor:
    editor.delete_model(Book)
    editor.delete_model(Author)
connection.close()
