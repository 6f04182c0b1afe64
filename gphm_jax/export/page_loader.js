// Turns the page's own compressed scripts into modules, and starts the program. Nothing is fetched.
(async () => {
  const status = document.getElementById("status");
  const unpack = async (id) => {
    const text = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };
  const asModule = (buffer) => URL.createObjectURL(new Blob([buffer], { type: "text/javascript" }));
  try {
    const imports = {};
    for (const script of document.querySelectorAll("script[data-module]")) {
      imports[script.dataset.module] = asModule(await unpack(script.id));
    }
    const map = Object.assign(document.createElement("script"), { type: "importmap" });
    map.textContent = JSON.stringify({ imports });
    document.head.append(map);
    const program = asModule(document.getElementById("program").textContent);
    const { start } = await import(program);
    await start(JSON.parse(document.getElementById("scene").textContent), await unpack("data"));
    status.textContent = "";
  } catch (error) {
    status.textContent = `This browser cannot show the head (${error.message}); it needs WebGL 2.`;
    throw error;
  }
})();
