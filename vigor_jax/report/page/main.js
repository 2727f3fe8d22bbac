// What the page does once it is open.

function switchTheme() {
  const root = document.documentElement;
  const theme = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = theme === "dark" ? "light" : "dark";
}

element("theme").addEventListener("click", switchTheme);
addEventListener("keydown", (event) => {
  const isTyped = event.ctrlKey || event.metaKey || event.target.matches("input[type=search], select");
  if (event.key === "t" && !isTyped) switchTheme();
});
const framed = document.querySelectorAll("[data-picture]");
if (element("gallery") || element("responses") || framed.length) {
  const { runs, ppo } = await readRecords();
  const pictureOf = readPictures();
  if (element("gallery")) openGallery(runs, pictureOf);
  if (element("responses")) openResponses(ppo, pictureOf);
  for (const frame of framed) frame.append(picture(pictureOf(Number(frame.dataset.picture))));
}
document.documentElement.dataset.ready = "";
