from books import views

from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("books/", views.count),
    path("books/add/<str:title>/", views.add),
    path("books/async/", views.count_async),
    path("books/broken/", views.broken),
    path("books/stream/", views.stream),
    path("session/", views.session),
]
