"""The protocol on the wire: stock SDKs and plain HTTP against a real `runbell serve`."""
