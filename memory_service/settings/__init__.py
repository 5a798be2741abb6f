"""The groups that the settings are made of; memory_service/config.py puts them together and reads them."""
