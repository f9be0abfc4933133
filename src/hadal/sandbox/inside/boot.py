"""Starts a process of the sandbox: `python -P boot.py keeper|worker CONFIG`, without importing hadal."""

import importlib
import json
import os
import sys
import types

package = types.ModuleType("sandbox_inside")
package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules["sandbox_inside"] = package
importlib.import_module(f"sandbox_inside.{sys.argv[1]}").main(json.loads(sys.argv[2]))
