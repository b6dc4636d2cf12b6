from django.db import migrations, models


def create_guests(apps, schema_editor):
    Guest = apps.get_model("guestbook", "Guest")
    Guest.objects.using(schema_editor.connection.alias).bulk_create(
        Guest(name="Guest %d" % number) for number in range(1, 101)
    )


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Guest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("visits", models.PositiveIntegerField(default=0)),
                ("last_visit", models.DateTimeField(blank=True, null=True)),
            ],
            options={"ordering": ["-visits", "pk"]},
        ),
        migrations.RunPython(create_guests, migrations.RunPython.noop),
    ]
