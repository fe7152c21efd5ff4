"""What a build tells about itself, beside the manifest: a bill of materials and where everything came from."""
