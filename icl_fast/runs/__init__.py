"""Training runs on disk: configs, folders, snapshots, logs, manifests; and series of snapshots."""
