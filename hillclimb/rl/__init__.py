"""The climb: objective, controllers, filters, curriculum (report §3.1)."""
