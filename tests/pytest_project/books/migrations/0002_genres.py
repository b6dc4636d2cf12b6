from django.db import migrations


def add_genres(apps, schema_editor):
    Genre = apps.get_model("books", "Genre")
    Genre.objects.using(schema_editor.connection.alias).bulk_create(
        [Genre(name=name) for name in ["Drama", "Essay", "Novel"]]
    )


class Migration(migrations.Migration):
    dependencies = [("books", "0001_initial")]

    operations = [migrations.RunPython(add_genres, migrations.RunPython.noop)]
