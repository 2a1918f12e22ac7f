"""The float network teaches the quantised one."""
