"""
Requests in tests reach views only where tests override ROOT_URLCONF.
"""

urlpatterns = []
