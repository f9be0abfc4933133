"""Starts a keeper: `python -P -s -S boot.py CONFIG`, with the files beside this one and the standard library alone."""

import importlib
import json
import os
import sys
import types

package = types.ModuleType("sandbox_inside")
package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules["sandbox_inside"] = package
importlib.import_module("sandbox_inside.keeper").main(json.loads(sys.argv[1]))
