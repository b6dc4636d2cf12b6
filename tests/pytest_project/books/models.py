from django.db import models


class Genre(models.Model):
    name = models.CharField(max_length=50, unique=True)

    def __str__(self):
        return self.name


class Shop(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self):
        return self.name


class Book(models.Model):
    title = models.CharField(max_length=50, unique=True)
    genre = models.ForeignKey(Genre, models.CASCADE, null=True, blank=True)
    copies = models.IntegerField(default=0)
    added_at = models.DateTimeField(null=True, blank=True)

    def __str__(self):
        return self.title
