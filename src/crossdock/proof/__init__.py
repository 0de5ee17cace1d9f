"""Evidence from outside: real engines and libraries held against what crossdock wrote."""
