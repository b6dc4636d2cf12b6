from django.urls import path

from . import views

urlpatterns = [
    path("guests/", views.guests),
    path("guests/<int:pk>/visit/", views.visit),
    path("guests/<int:pk>/slow/", views.slow),
    # The same views for an event loop.
    path("async/guests/", views.aguests),
    path("async/guests/<int:pk>/visit/", views.avisit),
    path("async/guests/<int:pk>/slow/", views.aslow),
]
