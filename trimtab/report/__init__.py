"""From records alone: tables, charts and pages."""
