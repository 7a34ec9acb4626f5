"""Adapters from elsewhere: checked as strictly as those that are trained here, and published like them."""
