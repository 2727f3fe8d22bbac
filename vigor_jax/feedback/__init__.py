"""What people say of descriptions: asked in Label Studio, or read from public files; compared and put together."""
